//! Mistakes for tests to make on purpose, for the crates that have some.

/// Declares the mistakes that a crate does not make, as an enum `Bug`, with `bugs::is`, which is
/// `const false` unless that crate's feature `seeded-bugs` is on. With the feature there are
/// `Bug::ALL` and `bugs::during`, which makes one of them on purpose.
#[doc(hidden)]
#[macro_export]
macro_rules! mistakes {
    ($($(#[doc = $words:literal])+ $name:ident,)+) => {
        /// A mistake.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Bug {
            $($(#[doc = $words])+ $name,)+
        }

        /// Whether the code is to make this mistake: never.
        #[cfg(not(feature = "seeded-bugs"))]
        pub const fn is(_: Bug) -> bool {
            false
        }

        #[cfg(feature = "seeded-bugs")]
        pub use seeded::{during, is};

        #[cfg(feature = "seeded-bugs")]
        mod seeded {
            use std::cell::Cell;

            use super::Bug;

            thread_local! {
                static SEEDED: Cell<Option<Bug>> = const { Cell::new(None) };
            }

            /// Whether the code is to make this mistake, in this thread.
            #[must_use]
            pub fn is(bug: Bug) -> bool {
                SEEDED.get() == Some(bug)
            }

            /// Makes a mistake for as long as `body` runs, in this thread.
            pub fn during<T>(bug: Option<Bug>, body: impl FnOnce() -> T) -> T {
                /// Also when `body` panics.
                struct Unseed;
                impl Drop for Unseed {
                    fn drop(&mut self) {
                        SEEDED.set(None);
                    }
                }
                SEEDED.set(bug);
                let _unseed = Unseed;
                body()
            }

            impl Bug {
                /// All of them.
                pub const ALL: &[Self] = &[$(Self::$name),+];
            }
        }
    };
}
