//! Makes the C header of the declarations in Rust.

mod names;
mod words;

use std::fmt::Write;
use std::fs;
use std::path::Path;

use syn::{Fields, FnArg, Item, ItemFn, ItemStruct, Pat, ReturnType, Visibility};

use names::{constant, declared, prefixed};
use words::comment;

/// In the order of the header. Types come before the functions that use them.
const FILES: [&str; 6] = [
    "abi.rs",
    "calls/rings.rs",
    "calls/files.rs",
    "calls/reads.rs",
    "calls/writes.rs",
    "calls/words.rs",
];

const HEAD: &str = include_str!("head.h");
const TAIL: &str = include_str!("tail.h");

/// All of it.
pub(crate) fn header(sources: &Path) -> String {
    let mut header = HEAD.to_owned();
    for file in FILES {
        let text = fs::read_to_string(sources.join(file)).expect("a source file");
        header += &declarations(&text);
    }
    header + TAIL
}

/// What a source file declares for C.
pub(crate) fn declarations(source: &str) -> String {
    let file = syn::parse_file(source).expect("it is Rust");
    let mut out = String::new();
    for item in &file.items {
        match item {
            Item::Const(item) if is_public(&item.vis) => {
                out += &comment(&item.attrs, "");
                let name = prefixed(&item.ident.to_string()).to_uppercase();
                writeln!(out, "#define {name} {}\n", constant(item)).expect("a string");
            }
            Item::Type(item) if is_public(&item.vis) => {
                out += &comment(&item.attrs, "");
                let name = prefixed(&item.ident.to_string());
                writeln!(out, "typedef {};\n", declared(&item.ty, &name)).expect("a string");
            }
            Item::Struct(item) if is_public(&item.vis) => out += &structure(item),
            Item::Fn(item) if item.sig.abi.is_some() => out += &function(item),
            _ => {}
        }
    }
    out
}

fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

fn structure(item: &ItemStruct) -> String {
    let is_c = item.attrs.iter().any(|attribute| {
        attribute.path().is_ident("repr")
            && attribute.parse_args::<syn::Ident>().is_ok_and(|layout| layout == "C")
    });
    assert!(is_c, "{} is not laid out as C wants it", item.ident);
    let name = prefixed(&item.ident.to_string());
    let mut out = comment(&item.attrs, "");
    writeln!(out, "typedef struct {name} {{").expect("a string");
    let Fields::Named(fields) = &item.fields else { panic!("{name} has no names") };
    for field in &fields.named {
        assert!(is_public(&field.vis), "{name} hides something");
        out += &comment(&field.attrs, "    ");
        let field_name = field.ident.as_ref().expect("a name").to_string();
        writeln!(out, "    {};", declared(&field.ty, &field_name)).expect("a string");
    }
    writeln!(out, "}} {name};\n").expect("a string");
    out
}

fn function(item: &ItemFn) -> String {
    let name = item.sig.ident.to_string();
    assert!(name.starts_with("forebay_"), "{name} could be anybody's");
    let arguments: Vec<String> = item.sig.inputs.iter().map(argument).collect();
    let arguments = if arguments.is_empty() { "void".to_owned() } else { arguments.join(", ") };
    let head = format!("{name}({arguments})");
    let head = match &item.sig.output {
        ReturnType::Default => format!("void {head}"),
        ReturnType::Type(_, kind) => declared(kind, &head),
    };
    format!("{}{head};\n\n", comment(&item.attrs, ""))
}

fn argument(argument: &FnArg) -> String {
    let FnArg::Typed(argument) = argument else { panic!("functions of C have no self") };
    let Pat::Ident(name) = &*argument.pat else { panic!("an argument has a name") };
    declared(&argument.ty, &name.ident.to_string())
}
