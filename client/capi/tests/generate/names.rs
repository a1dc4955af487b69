//! Names and types of C.

use syn::{Expr, ExprLit, ItemConst, Lit, Type};

/// `CamelCase` in C's manner, with the prefix.
pub(crate) fn prefixed(name: &str) -> String {
    let mut out = "forebay".to_owned();
    let is_constant = name.chars().all(|c| !c.is_lowercase());
    for (at, letter) in name.chars().enumerate() {
        if at == 0 || (letter.is_uppercase() && !is_constant) {
            out.push('_');
        }
        out.extend(letter.to_lowercase());
    }
    out
}

/// The value of a constant that C can have.
pub(crate) fn constant(item: &ItemConst) -> String {
    let number = match &*item.expr {
        Expr::Lit(ExprLit { lit: Lit::Int(number), .. }) => number.base10_digits(),
        _ => panic!("{} is no plain number", item.ident),
    };
    // So that `features & FOREBAY_CAP_…` has as many bits as the field, and kinds have a sign.
    let suffix = match &*plain(&item.ty) {
        "u64" => "u",
        "u32" | "i32" => "",
        other => panic!("{}: C has no {other}", item.ident),
    };
    format!("{number}{suffix}")
}

/// `name` as something of this type.
pub(crate) fn declared(kind: &Type, name: &str) -> String {
    match kind {
        Type::Ptr(pointer) => {
            let inner = match &*pointer.elem {
                Type::Ptr(_) => declared(&pointer.elem, &format!("*{name}")),
                plain => declared(plain, &format!("*{name}")),
            };
            if pointer.const_token.is_some() && !matches!(&*pointer.elem, Type::Ptr(_)) {
                format!("const {inner}")
            } else {
                inner
            }
        }
        Type::Array(array) => {
            let Expr::Lit(ExprLit { lit: Lit::Int(count), .. }) = &array.len else {
                panic!("{name} has no plain length")
            };
            declared(&array.elem, &format!("{name}[{}]", count.base10_digits()))
        }
        other => {
            let c = match &*plain(other) {
                "u8" => "uint8_t".to_owned(),
                "u32" => "uint32_t".to_owned(),
                "i32" => "int".to_owned(),
                "u64" => "uint64_t".to_owned(),
                "i64" => "int64_t".to_owned(),
                "c_char" => "char".to_owned(),
                "c_void" => "void".to_owned(),
                ours @ ("Ring" | "Options" | "Sqe" | "Cqe" | "Caps" | "File" | "Writer") => {
                    prefixed(ours)
                }
                other => panic!("{name}: C has no {other}"),
            };
            format!("{c} {name}")
        }
    }
}

fn plain(kind: &Type) -> String {
    let Type::Path(path) = kind else { panic!("a type that C does not have") };
    path.path.segments.last().expect("a name").ident.to_string()
}
