//! The two queues that C looks into: requests that it fills, and completions that it reads.
#![expect(unsafe_code, reason = "C writes requests and reads completions in place")]

use std::cell::UnsafeCell;

use crate::abi::{Cqe, Sqe};
use crate::bugs::{self, Bug};
use crate::failure::{Failure, Outcome};

/// Places that are filled at one end and emptied at the other. C has pointers to them, so that they
/// are used by their addresses only.
struct Places<T> {
    places: Box<[UnsafeCell<T>]>,
    head: usize,
    length: usize,
}

impl<T: Copy> Places<T> {
    fn new(count: usize, empty: T) -> Self {
        let places = (0..count).map(|_| UnsafeCell::new(empty)).collect();
        Self { places, head: 0, length: 0 }
    }

    /// A place at the end.
    fn push(&mut self) -> Option<*mut T> {
        if self.length == self.places.len() {
            return None;
        }
        let place = (self.head + self.length) % self.places.len();
        self.length += 1;
        Some(self.places[place].get())
    }

    fn first(&self) -> Option<*mut T> {
        (self.length != 0).then(|| self.places[self.head].get())
    }

    fn pop(&mut self) {
        self.head = (self.head + 1) % self.places.len();
        self.length -= 1;
    }
}

/// Requests that were handed out and not submitted.
pub(crate) struct Requests(Places<Sqe>);

impl Requests {
    pub(crate) fn new(entries: usize) -> Self {
        Self(Places::new(entries, Sqe::NONE))
    }

    pub(crate) fn len(&self) -> usize {
        self.0.length
    }

    /// An empty one, to be filled; `None` if there is no place.
    pub(crate) fn add(&mut self) -> Option<*mut Sqe> {
        let place = self.0.push()?;
        // SAFETY: the place is the queue's, and C has no use for it before it gets it now.
        unsafe { place.write(Sqe::NONE) };
        Some(place)
    }

    /// The oldest.
    pub(crate) fn take(&mut self) -> Option<Sqe> {
        let place = self.0.first()?;
        // SAFETY: C has filled it before it called, on this thread.
        let request = unsafe { place.read() };
        self.0.pop();
        Some(request)
    }
}

/// Completions that were not seen yet, with the words of those that failed.
pub(crate) struct Completions {
    places: Places<Cqe>,
    words: Box<[Option<Failure>]>,
}

impl Completions {
    pub(crate) fn new(entries: usize) -> Self {
        let words = (0..entries).map(|_| None).collect();
        Self { places: Places::new(entries, Cqe::NONE), words }
    }

    pub(crate) fn len(&self) -> usize {
        self.places.length
    }

    /// # Panics
    /// If there is no place: whoever submits keeps one for each request.
    pub(crate) fn add(&mut self, completion: Cqe, failure: Option<Failure>) {
        let at = (self.places.head + self.places.length) % self.words.len();
        let place = self.places.push().expect("each request has a place for its completion");
        // SAFETY: the place is empty: C is done with what was in it before.
        unsafe { place.write(completion) };
        self.words[at] = failure;
    }

    /// The oldest, and what went wrong with it.
    pub(crate) fn first(&self) -> Option<(*const Cqe, Option<&Failure>)> {
        let place = self.places.first()?;
        Some((place, self.words[self.places.head].as_ref()))
    }

    /// C is done with the oldest, which this must be.
    pub(crate) fn seen(&mut self, completion: *const Cqe) -> Outcome<()> {
        if completion.is_null() {
            return Err(Failure::invalid(c"the completion is a null pointer"));
        }
        match self.places.first() {
            Some(first) if std::ptr::eq(first, completion) => {}
            _ => {
                return Err(Failure::invalid(
                    c"this is not the completion that was handed out last",
                ));
            }
        }
        if !bugs::is(Bug::HandedOutTwice) {
            self.words[self.places.head] = None;
            self.places.pop();
        }
        Ok(())
    }
}
