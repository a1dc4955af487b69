//! Comments of C.

use syn::{Attribute, Expr, ExprLit, Lit, Meta};

const WIDTH: usize = 100;

/// The documentation of an item, or nothing.
pub(crate) fn comment(attributes: &[Attribute], indent: &str) -> String {
    let paragraphs = paragraphs(&lines(attributes));
    match &paragraphs[..] {
        [] => String::new(),
        [only] if indent.len() + only.len() + 7 <= WIDTH => format!("{indent}/** {only} */\n"),
        _ => {
            let mut out = format!("{indent}/**\n");
            for (at, paragraph) in paragraphs.iter().enumerate() {
                if at != 0 {
                    out += &format!("{indent} *\n");
                }
                for line in wrapped(paragraph, WIDTH - indent.len() - 3) {
                    out += &format!("{indent} * {line}\n");
                }
            }
            out + &format!("{indent} */\n")
        }
    }
}

fn lines(attributes: &[Attribute]) -> Vec<String> {
    let documentation = attributes.iter().filter_map(|attribute| match &attribute.meta {
        Meta::NameValue(pair) if pair.path.is_ident("doc") => Some(&pair.value),
        _ => None,
    });
    let text = documentation.map(|value| match value {
        Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) => text.value().trim().to_owned(),
        _ => panic!("documentation is text"),
    });
    text.collect()
}

/// Headings of Rust's documentation become the first words of what follows.
fn paragraphs(lines: &[String]) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    let mut heading = None;
    let mut open = false;
    for line in lines {
        match line.as_str() {
            "" => open = false,
            "# Errors" => heading = Some("Errors: "),
            "# Safety" => heading = Some("The caller sees to it: "),
            words if open => {
                let last = out.last_mut().expect("a paragraph was begun");
                *last = format!("{last} {words}");
            }
            words => {
                out.push(format!("{}{words}", heading.take().unwrap_or("")));
                open = true;
            }
        }
    }
    // That a pointer is what it says is said once, at the top.
    out.retain(|paragraph| paragraph != "The caller sees to it: nothing more.");
    out.iter().map(|paragraph| paragraph.replace('`', "")).collect()
}

fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("there is a line");
        if !line.is_empty() && line.len() + 1 + word.len() > width {
            lines.push(word.to_owned());
        } else {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}
