use crate::codec::{Reader, Writer};
use crate::{FileId, Generation, Kind, Result};

/// The body of a HELLO's reply, 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HelloBody {
    /// The version both sides speak from now on.
    pub version: u16,
    /// How many requests the session may have in flight.
    pub credits: u16,
    /// Feature bits granted.
    pub features: u64,
    /// The most bytes of one READ or WRITE.
    pub max_transfer_bytes: u64,
    /// Transfers at multiples of this, into memory so aligned, may land without a copy.
    pub block_bytes: u32,
}

impl HelloBody {
    const BYTES: usize = 32;

    /// The body's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; Self::BYTES];
        let mut w = Writer::new(&mut out);
        w.u16(self.version).u16(self.credits).u32(self.block_bytes);
        w.u64(self.features).u64(self.max_transfer_bytes);
        out
    }

    /// Reads a body; longer ones come from newer nodes and are cut.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] if it is too short.
    pub fn parse(body: &[u8]) -> Result<Self> {
        let mut r = long_enough(body, Self::BYTES, "HELLO")?;
        let (version, credits, block_bytes) = (r.u16(), r.u16(), r.u32());
        Ok(Self { version, credits, features: r.u64(), max_transfer_bytes: r.u64(), block_bytes })
    }
}

/// The body of an OPEN's, COMMIT's or STAT's reply, 64 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpenBody {
    /// The file.
    pub file: FileId,
    /// The generation that the handle reads; 0 while it writes one.
    pub generation: Generation,
    /// The file's length in bytes.
    pub length: u64,
    /// Bytes of an extent: reads that stay within one are the cheapest.
    pub extent_bytes: u64,
    /// Extents of this generation that are on the node.
    pub resident_extents: u32,
    /// Extents in all.
    pub total_extents: u32,
    /// What tells these bytes from all others: who sees the same number of a file twice, other than
    /// 0, sees the same bytes. A generation has it before it is committed, and keeps it. 0 if the
    /// node does not say.
    pub identity: u128,
}

impl OpenBody {
    const BYTES: usize = 64;

    /// The body's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; Self::BYTES];
        let mut w = Writer::new(&mut out);
        w.u128(self.file.0).u64(self.generation.0).u64(self.length).u64(self.extent_bytes);
        w.u32(self.resident_extents).u32(self.total_extents).u128(self.identity);
        out
    }

    /// Reads a body; longer ones come from newer nodes and are cut.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] if it is too short.
    pub fn parse(body: &[u8]) -> Result<Self> {
        let mut r = long_enough(body, Self::BYTES, "OPEN")?;
        Ok(Self {
            file: FileId(r.u128()),
            generation: Generation(r.u64()),
            length: r.u64(),
            extent_bytes: r.u64(),
            resident_extents: r.u32(),
            total_extents: r.u32(),
            identity: r.u128(),
        })
    }
}

fn long_enough<'a>(body: &'a [u8], bytes: usize, of: &str) -> Result<Reader<'a>> {
    if body.len() < bytes {
        return Err(Kind::Corrupt.error(format!("{of} was answered with {} bytes", body.len())));
    }
    Ok(Reader::new(body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_survive_the_wire() {
        let hello = HelloBody {
            version: 1,
            credits: 64,
            features: 5,
            max_transfer_bytes: 1 << 24,
            block_bytes: 4096,
        };
        assert_eq!(HelloBody::parse(&hello.encode()).expect("own body"), hello);
        let open = OpenBody {
            file: FileId(1 << 100 | 3),
            generation: Generation(4),
            length: 10,
            extent_bytes: 1 << 22,
            resident_extents: 1,
            total_extents: 2,
            identity: 7 << 90 | 1,
        };
        assert_eq!(OpenBody::parse(&open.encode()).expect("own body"), open);
        assert_eq!(OpenBody::parse(&[0; 63]).expect_err("short").kind(), Kind::Corrupt);
    }
}
