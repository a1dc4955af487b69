//! Memory that Python sees and the node writes.

use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use client::Memory;
use dma::Region;
use extent::{Error, Kind, Result};

use crate::lock::Mutex;

/// One allocation, of which any parts that do not overlap may be read into at the same time.
///
/// The session takes memory by value while the node uses it. So the allocation is cut where reads
/// begin and end, and what comes back is joined to what it was cut from: there are never more pieces
/// than two for each request, and one.
pub(crate) struct Slab {
    /// Keeps the bytes mapped, even of pieces that were lost with their session.
    region: Arc<Region>,
    /// Where in the region it begins.
    offset: usize,
    length: usize,
    pieces: Mutex<Vec<Piece>>,
}

struct Piece {
    start: usize,
    length: usize,
    held: Held,
}

enum Held {
    /// By nobody else.
    Here(Memory),
    /// By a request.
    Lent,
    /// By devices of the node, which may still write to it although the session is over.
    Lost,
}

impl Slab {
    /// Takes memory over.
    ///
    /// # Errors
    /// [`Kind::Disconnected`] if its session is over already.
    pub(crate) fn new(memory: Memory) -> Result<Self> {
        let Some(region) = memory.region().map(Arc::clone) else {
            return Err(Kind::Disconnected.error("the session is over: connect again"));
        };
        let (offset, length) = (memory.offset(), memory.len());
        let pieces = Mutex::new(vec![Piece { start: 0, length, held: Held::Here(memory) }]);
        Ok(Self { region, offset, length, pieces })
    }

    pub(crate) fn len(&self) -> usize {
        self.length
    }

    /// The first byte; it stays where it is for as long as the slab lives.
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.region.at(self.offset, self.length)
    }

    /// Takes a range, which is not empty.
    ///
    /// # Errors
    /// [`Kind::Busy`] if some of it is being read into or written from already.
    pub(crate) fn take(&self, range: &Range<usize>) -> Result<Memory> {
        assert!(!range.is_empty() && range.end <= self.length, "the range is inside");
        let mut pieces = self.pieces.lock();
        for piece in &pieces[touched(&pieces, range)] {
            match piece.held {
                Held::Here(_) => {}
                Held::Lent => {
                    return Err(Kind::Busy.error(
                        "another request still uses this part of the buffer: wait for its result",
                    ));
                }
                Held::Lost => return Err(lost()),
            }
        }
        cut(&mut pieces, range.start);
        cut(&mut pieces, range.end);
        // Pieces that are here and follow each other are one.
        let index = touched(&pieces, range).start;
        match std::mem::replace(&mut pieces[index].held, Held::Lent) {
            Held::Here(memory) => Ok(memory),
            Held::Lent | Held::Lost => unreachable!("all of them are here"),
        }
    }

    /// Takes all of the memory out of it, for good.
    ///
    /// # Errors
    /// [`Kind::Busy`] if some of it is being read into or written from.
    pub(crate) fn close(&self) -> Result<Vec<Memory>> {
        let mut pieces = self.pieces.lock();
        if pieces.iter().any(|piece| matches!(piece.held, Held::Lent)) {
            let sentence = "requests still use this memory: wait for their results";
            return Err(Kind::Busy.error(sentence));
        }
        let take = |piece: &mut Piece| match std::mem::replace(&mut piece.held, Held::Lost) {
            Held::Here(memory) => Some(memory),
            Held::Lent | Held::Lost => None,
        };
        Ok(pieces.iter_mut().filter_map(take).collect())
    }

    /// Takes a piece back; empty memory means that it is lost.
    pub(crate) fn give_back(&self, start: usize, memory: Memory) {
        let mut pieces = self.pieces.lock();
        let index = pieces.partition_point(|piece| piece.start < start);
        let piece = &mut pieces[index];
        assert!(piece.start == start, "what comes back was taken");
        piece.held = if memory.is_empty() { Held::Lost } else { Held::Here(memory) };
        join(&mut pieces, index);
        if let Some(before) = index.checked_sub(1) {
            join(&mut pieces, before);
        }
    }
}

fn lost() -> Error {
    Kind::Disconnected.error("this buffer was lost with its session: connect and allocate again")
}

/// Makes a piece and the next one into one again, if both are here.
fn join(pieces: &mut Vec<Piece>, index: usize) {
    let [piece, next, ..] = &mut pieces[index..] else { return };
    let (Held::Here(memory), Held::Here(rest)) = (&mut piece.held, &mut next.held) else { return };
    let joined = memory.join(std::mem::take(rest));
    assert!(joined.is_ok(), "they were cut from each other");
    piece.length += next.length;
    pieces.remove(index + 1);
}

/// The indices of the pieces that a range touches.
fn touched(pieces: &[Piece], range: &Range<usize>) -> Range<usize> {
    let first = pieces.partition_point(|piece| piece.start + piece.length <= range.start);
    let end = pieces.partition_point(|piece| piece.start < range.end);
    first..end
}

/// Makes a piece begin at a place. The piece there is not lent.
fn cut(pieces: &mut Vec<Piece>, place: usize) {
    let index = pieces.partition_point(|piece| piece.start + piece.length <= place);
    let Some(piece) = pieces.get_mut(index) else { return };
    let at = place - piece.start;
    if at == 0 {
        return;
    }
    if let Held::Here(memory) = &mut piece.held {
        let rest = memory.split_off(at);
        let length = std::mem::replace(&mut piece.length, at) - at;
        pieces.insert(index + 1, Piece { start: place, length, held: Held::Here(rest) });
    }
}
