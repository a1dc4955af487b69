//! Little-endian fields at fixed offsets, for capsules and on-device records.

/// Reads little-endian fields one after the other. Every record is longer than its fields, so a
/// read past the end is a bug in the record's layout and panics.
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// Starts at the first byte.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        out.copy_from_slice(self.slice(N));
        out
    }

    /// The next `length` bytes.
    pub fn slice(&mut self, length: usize) -> &'a [u8] {
        let part = &self.bytes[self.at..self.at + length];
        self.at += length;
        part
    }

    /// Passes over `length` bytes.
    pub fn skip(&mut self, length: usize) {
        self.slice(length);
    }

    /// The offset of the next field.
    #[must_use]
    pub const fn position(&self) -> usize {
        self.at
    }

    /// The next byte.
    pub fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    /// The next 16-bit field.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// The next 32-bit field.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    /// The next 64-bit field.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// The next 128-bit field.
    pub fn u128(&mut self) -> u128 {
        u128::from_le_bytes(self.array())
    }
}

/// Writes little-endian fields one after the other into a buffer of fixed size.
pub struct Writer<'a> {
    bytes: &'a mut [u8],
    at: usize,
}

impl<'a> Writer<'a> {
    /// Starts at the first byte.
    pub const fn new(bytes: &'a mut [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Appends `part`.
    pub fn slice(&mut self, part: &[u8]) -> &mut Self {
        self.bytes[self.at..self.at + part.len()].copy_from_slice(part);
        self.at += part.len();
        self
    }

    /// Appends `length` zero bytes.
    pub fn zeroes(&mut self, length: usize) -> &mut Self {
        self.bytes[self.at..self.at + length].fill(0);
        self.at += length;
        self
    }

    /// The offset of the next field.
    #[must_use]
    pub const fn position(&self) -> usize {
        self.at
    }

    /// Appends a byte.
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.slice(&[value])
    }

    /// Appends a 16-bit field.
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.slice(&value.to_le_bytes())
    }

    /// Appends a 32-bit field.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.slice(&value.to_le_bytes())
    }

    /// Appends a 64-bit field.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.slice(&value.to_le_bytes())
    }

    /// Appends a 128-bit field.
    pub fn u128(&mut self, value: u128) -> &mut Self {
        self.slice(&value.to_le_bytes())
    }
}
