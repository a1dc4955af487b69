use dma::Target;

/// Bytes that a stream delivered and nobody took yet. Bounded: what does not fit stays in the
/// socket.
#[derive(Debug)]
pub(super) struct Input {
    bytes: Box<[u8]>,
    begin: usize,
    end: usize,
}

impl Input {
    /// Bytes that are kept at most.
    pub(super) const CAPACITY: usize = 64 << 10;

    pub(super) fn new() -> Self {
        Self { bytes: vec![0; Self::CAPACITY].into_boxed_slice(), begin: 0, end: 0 }
    }

    pub(super) fn buffered(&self) -> &[u8] {
        &self.bytes[self.begin..self.end]
    }

    /// Takes `count` bytes from the front.
    pub(super) fn consume(&mut self, count: usize) {
        self.begin += count;
        assert!(self.begin <= self.end, "only what is there is taken");
        if self.begin == self.end {
            (self.begin, self.end) = (0, 0);
        }
    }

    /// Room for more, at least three quarters of what is free.
    pub(super) fn space(&mut self) -> &mut [u8] {
        // Mostly what is left is less than a capsule, and moving it to the front costs nothing.
        if self.begin > Self::CAPACITY / 4 || self.end - self.begin < 256 {
            self.bytes.copy_within(self.begin..self.end, 0);
            (self.begin, self.end) = (0, self.end - self.begin);
        }
        &mut self.bytes[self.end..]
    }

    /// `count` bytes of [`Input::space`] were written.
    pub(super) fn filled(&mut self, count: usize) {
        self.end += count;
        assert!(self.end <= self.bytes.len(), "the space bounds what is received");
    }
}

/// Memory that is being filled from the front.
#[derive(Debug)]
pub(super) struct Filling {
    pub(super) into: Target,
    pub(super) filled: usize,
}

impl Filling {
    pub(super) fn new(into: Target) -> Self {
        Self { into, filled: 0 }
    }

    /// Bytes still missing.
    pub(super) fn missing(&self) -> usize {
        self.into.length() - self.filled
    }

    /// Copies as many bytes as are missing and there, and returns how many.
    pub(super) fn copy_in(&mut self, bytes: &[u8]) -> usize {
        let bytes = &bytes[..bytes.len().min(self.missing())];
        match &mut self.into {
            Target::Buffer(buffer, range) => {
                let begin = range.start + self.filled;
                buffer.as_mut_slice()[begin..][..bytes.len()].copy_from_slice(bytes);
            }
            Target::Window(window) => {
                window.part(self.filled..self.filled + bytes.len()).copy_in(bytes);
            }
        }
        self.filled += bytes.len();
        bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_in_order_and_room_never_runs_out() {
        let mut input = Input::new();
        let (mut wrote, mut read) = (0u8, 0u8);
        for round in 0..2000 {
            let space = input.space();
            assert!(!space.is_empty());
            let count = space.len().min(1 + round * 37 % 5000);
            for byte in &mut space[..count] {
                *byte = wrote;
                wrote = wrote.wrapping_add(1);
            }
            input.filled(count);
            let keep = (round * 13 % 127).min(input.buffered().len());
            let take = input.buffered().len() - keep;
            for byte in &input.buffered()[..take] {
                assert_eq!(*byte, read);
                read = read.wrapping_add(1);
            }
            input.consume(take);
        }
    }
}
