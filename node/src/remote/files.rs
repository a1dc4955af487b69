//! Files of a running node.

use std::time::Duration;

use control::proto as v1;
use extent::{ByteRange, Kind, Result};

use super::Remote;

/// Bounded by the protocol.
const MAX_TARGETS: usize = 1024;
const PAGE: u32 = 1000;

/// What to act on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Target {
    /// A file, or the extents that a range of it touches.
    File(String, Option<ByteRange>),
    /// All files whose names begin so.
    Prefix(String),
}

/// Several of them.
pub(crate) type Targets = Vec<Target>;

impl Target {
    fn encode(self) -> v1::Target {
        use v1::target::What;
        let what = match self {
            Self::File(file, None) => What::File(file),
            Self::File(file, Some(range)) => {
                What::Range(v1::FileRange { file, offset: range.offset(), length: range.length() })
            }
            Self::Prefix(prefix) => What::Prefix(prefix),
        };
        v1::Target { what: Some(what) }
    }
}

fn encode(targets: Targets) -> Result<Vec<v1::Target>> {
    if targets.len() > MAX_TARGETS {
        return Err(Kind::Invalid.error(format!(
            "{} files at once, and the most is {MAX_TARGETS}: use --prefix, or several calls",
            targets.len()
        )));
    }
    Ok(targets.into_iter().map(Target::encode).collect())
}

fn pin_options(owner: &str, ttl: Duration) -> Result<v1::PinOptions> {
    let ttl = ttl.try_into().map_err(|_| Kind::Invalid.error("a pin that lasts too long"))?;
    Ok(v1::PinOptions { owner: owner.to_owned(), ttl: Some(ttl) })
}

impl Remote {
    /// Brings files onto the node, and pins them for an owner if asked. The job has just begun.
    ///
    /// # Errors
    /// What the node answers; so for all that follow.
    pub(crate) async fn promote(
        &self,
        targets: Targets,
        durable: bool,
        pin: Option<(&str, Duration)>,
    ) -> Result<v1::Job> {
        let request = v1::PromoteRequest {
            mutation: None,
            targets: encode(targets)?,
            durable,
            pin: pin.map(|(owner, ttl)| pin_options(owner, ttl)).transpose()?,
        };
        self.client().promote(request).await
    }

    /// Writes files back, verifies the copies, lets the extents go.
    pub(crate) async fn demote(&self, targets: Targets) -> Result<v1::Job> {
        let request = v1::DemoteRequest { mutation: None, targets: encode(targets)? };
        self.client().demote(request).await
    }

    /// Writes files back and verifies the copies.
    pub(crate) async fn writeback(&self, targets: Targets) -> Result<v1::Job> {
        let request = v1::WritebackRequest { mutation: None, targets: encode(targets)? };
        self.client().writeback(request).await
    }

    /// Lets a clean file's extents go.
    pub(crate) async fn release(&self, target: Target) -> Result<v1::FileStatus> {
        let request = v1::ReleaseRequest { mutation: None, target: Some(target.encode()) };
        self.client().release(request).await
    }

    /// Settles a file that was changed on the node and in its silo.
    pub(crate) async fn resolve(&self, name: &str, keep: v1::Keep) -> Result<v1::FileStatus> {
        let mut request =
            v1::ResolveRequest { mutation: None, file: name.to_owned(), ..Default::default() };
        request.set_keep(keep);
        self.client().resolve(request).await
    }

    /// Makes a file known.
    pub(crate) async fn register(&self, name: &str) -> Result<v1::FileStatus> {
        let request = v1::RegisterRequest { mutation: None, file: name.to_owned() };
        self.client().register(request).await
    }

    /// What the node knows of a file.
    pub(crate) async fn stat(&self, name: &str) -> Result<v1::FileStatus> {
        self.client().get(name).await
    }

    /// Protects a file.
    pub(crate) async fn pin(
        &self,
        name: &str,
        owner: &str,
        ttl: Duration,
    ) -> Result<v1::FileStatus> {
        let pin = Some(pin_options(owner, ttl)?);
        let request = v1::PinRequest { mutation: None, file: name.to_owned(), pin };
        self.client().pin(request).await
    }

    /// Ends a pin.
    pub(crate) async fn unpin(&self, name: &str, owner: &str) -> Result<v1::FileStatus> {
        let request =
            v1::UnpinRequest { mutation: None, file: name.to_owned(), owner: owner.to_owned() };
        self.client().unpin(request).await
    }

    /// Known files by prefix, up to `limit`, and whether there are more.
    pub(crate) async fn list(
        &self,
        prefix: &str,
        limit: usize,
    ) -> Result<(Vec<v1::FileStatus>, bool)> {
        let mut files = Vec::new();
        let mut page_token = String::new();
        let mut client = self.client();
        loop {
            let request =
                v1::ListFilesRequest { prefix: prefix.to_owned(), page_size: PAGE, page_token };
            let page = client.list(request).await?;
            files.extend(page.files);
            page_token = page.next_page_token;
            if page_token.is_empty() || files.len() > limit {
                let more = !page_token.is_empty() || files.len() > limit;
                files.truncate(limit);
                return Ok((files, more));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_say_what_they_are() {
        let range = ByteRange::new(4096, 100).expect("a range");
        let encoded = encode(vec![
            Target::File("a/b".to_owned(), Some(range)),
            Target::Prefix("a/".to_owned()),
        ]);
        let encoded = encoded.expect("few");
        let what = |index: usize| encoded[index].what.clone().expect("set");
        let expected = v1::FileRange { file: "a/b".to_owned(), offset: 4096, length: 100 };
        assert_eq!(what(0), v1::target::What::Range(expected));
        assert_eq!(what(1), v1::target::What::Prefix("a/".to_owned()));
        let many = vec![Target::Prefix("a/".to_owned()); MAX_TARGETS + 1];
        assert_eq!(encode(many).expect_err("too many").kind(), Kind::Invalid);
    }
}
