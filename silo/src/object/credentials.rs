//! The shared credentials file of AWS's tools, which `object_store` does not read.

use std::env;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use extent::{Error, Kind, Result};
use object_store::aws::AwsCredential;

/// The credentials in `file`, or in the usual place, under `profile`, or the usual one. `None` if
/// neither was asked for and there is no such file or section.
pub(super) fn find(file: Option<&Path>, profile: Option<&str>) -> Result<Option<AwsCredential>> {
    let asked = file.is_some() || profile.is_some();
    let variable = |name| env::var(name).ok().filter(|value| !value.is_empty());
    let usual = || {
        let named = variable("AWS_SHARED_CREDENTIALS_FILE").map(PathBuf::from);
        named.or_else(|| Some(PathBuf::from(variable("HOME")?).join(".aws/credentials")))
    };
    let Some(path) = file.map(Path::to_path_buf).or_else(usual) else { return Ok(None) };
    let profile = profile
        .map(str::to_owned)
        .or_else(|| variable("AWS_PROFILE"))
        .unwrap_or_else(|| "default".to_owned());
    let shown = path.display();
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == ErrorKind::NotFound && !asked => return Ok(None),
        Err(e) => return Err(Error::io(format!("reading the credentials in {shown}"), e)),
    };
    match section(&text, &profile) {
        Some(found) => Ok(Some(found)),
        None if asked => Err(Kind::Invalid.error(format!(
            "{shown} has no section [{profile}] with aws_access_key_id and aws_secret_access_key"
        ))),
        None => Ok(None),
    }
}

/// The credentials in one section of a file: lines `name = value` under `[section]`.
fn section(text: &str, profile: &str) -> Option<AwsCredential> {
    let (mut inside, mut key_id, mut secret_key, mut token) = (false, None, None, None);
    for line in text.lines().map(str::trim) {
        if line.starts_with('#') || line.starts_with(';') {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            inside = name.trim() == profile;
        } else if inside && let Some((name, value)) = line.split_once('=') {
            let value = Some(value.trim().to_owned()).filter(|value| !value.is_empty());
            match name.trim() {
                "aws_access_key_id" => key_id = value,
                "aws_secret_access_key" => secret_key = value,
                "aws_session_token" => token = value,
                _ => {}
            }
        }
    }
    Some(AwsCredential { key_id: key_id?, secret_key: secret_key?, token })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "\
# a comment = with a sign
[default]
aws_access_key_id = AK1
aws_secret_access_key=se/cr=et

[ job ]
  aws_access_key_id=AK2
  aws_secret_access_key = s2
  aws_session_token = t2
[half]
aws_access_key_id = AK3
";

    #[test]
    fn sections_are_told_apart() {
        let found = section(FILE, "default").expect("there");
        assert_eq!((found.key_id.as_str(), found.secret_key.as_str()), ("AK1", "se/cr=et"));
        assert_eq!(found.token, None);
        assert_eq!(section(FILE, "job").expect("there").token.as_deref(), Some("t2"));
        assert!(section(FILE, "half").is_none() && section(FILE, "none").is_none());
    }

    #[test]
    fn a_file_that_was_asked_for_must_be_good() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("credentials");
        let refusal = |profile| find(Some(&path), profile).map(drop).expect_err("refused").kind();
        assert_eq!(refusal(None), Kind::Io);
        std::fs::write(&path, FILE).expect("a file");
        let found = find(Some(&path), Some("job")).expect("good").expect("there");
        assert_eq!(found.key_id, "AK2");
        assert_eq!(refusal(Some("half")), Kind::Invalid);
    }
}
