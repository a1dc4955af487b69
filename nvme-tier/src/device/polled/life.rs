/// Where a controller is in its life: how often it was reset, and whether it works. A queue
/// remembers the value under which it was made, and looks whether that still holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Life(pub(super) u32);

impl Life {
    pub(super) const WORKING: u32 = 0;
    pub(super) const RESETTING: u32 = 1;
    pub(super) const DEAD: u32 = 2;

    pub(super) fn new(resets: u32, phase: u32) -> Self {
        Self(resets << 2 | phase)
    }

    pub(super) fn resets(self) -> u32 {
        self.0 >> 2
    }

    pub(super) fn is_working(self) -> bool {
        self.0 & 0b11 == Self::WORKING
    }

    /// Not working, and never again.
    pub(super) fn is_dead(self) -> bool {
        self.0 & 0b11 == Self::DEAD
    }
}
