//! The ring over a software device.

mod scenes;

use scenes::*;

/// Runs each scene as a test of its own.
macro_rules! tests {
    ($($name:ident,)*) => {
        $(
            #[test]
            fn $name() {
                let scene = SCENES.iter().find(|(name, _)| *name == stringify!($name));
                scene.expect("listed").1();
            }
        )*

        #[test]
        fn every_scene_is_run() {
            assert_eq!(SCENES.len(), [$(stringify!($name)),*].len());
        }
    };
}

tests! {
    odd_ranges_arrive,
    no_piece_is_lent_while_it_is_read,
    failures_are_told_and_pieces_come_back,
    a_device_that_is_lost_keeps_what_it_may_read,
    a_ring_that_ends_under_a_copy_keeps_its_memory,
    replaced_memory_is_pinned_and_the_old_is_not,
    streams_are_ordered,
    pins_are_refused_or_done_without,
    what_does_not_fit_is_refused,
    device_memory_is_bounded_and_freed,
    only_whole_pages_are_exported,
}
