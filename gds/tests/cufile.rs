//! cuFile's side, over a library without a GPU: see `storage`.

mod storage;

use storage::SCENES;

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
    any_range_of_a_file_arrives_and_nothing_else,
    short_reads_go_on_and_a_file_that_shrinks_ends,
    registered_memory_is_read_into_and_given_back,
    threads_share_a_file_and_a_library,
    what_cannot_go_direct_is_not_called_direct,
    errors_are_told_apart_and_leave_nothing_behind,
    a_device_that_is_lost_keeps_what_is_written_to,
    what_cufile_does_not_read_is_refused_with_a_reason,
}
