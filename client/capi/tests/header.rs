//! The committed header is what the declarations in `src/` say. It is made anew by
//! `FOREBAY_WRITE_HEADER=1 cargo test -p forebay-capi --test header`.

mod generate;

use std::path::Path;
use std::{env, fs};

#[test]
fn the_committed_header_is_what_the_declarations_say() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let made = generate::header(&root.join("src"));
    let path = root.join("../include/forebay.h");
    if env::var_os("FOREBAY_WRITE_HEADER").is_some() {
        fs::write(&path, &made).expect("written");
    }
    let committed = fs::read_to_string(&path).expect("there is a header");
    let differs = committed.lines().zip(made.lines()).position(|(old, new)| old != new);
    let line = differs.map_or_else(|| "at its end".to_owned(), |at| format!("in line {}", at + 1));
    assert!(
        committed == made,
        "client/include/forebay.h differs {line}: FOREBAY_WRITE_HEADER=1 cargo test -p forebay-capi \
         --test header"
    );
}

#[test]
fn a_declaration_that_c_cannot_have_is_refused() {
    for strange in [
        "pub struct Hidden { pub a: u32 }",
        "#[repr(C)] pub struct Odd { pub a: usize }",
        "#[unsafe(no_mangle)] pub extern \"C\" fn other_name() {}",
        "pub const FLAG: bool = true;",
    ] {
        let refused = std::panic::catch_unwind(|| generate::declarations(strange));
        assert!(refused.is_err(), "{strange}");
    }
    let good = "/// Words.\npub const A_B: u32 = 3;";
    assert_eq!(generate::declarations(good), "/** Words. */\n#define FOREBAY_A_B 3\n\n");
}
