//! A node that writes into memory of a device, over simulated RDMA devices.

mod common;
mod device;

use device::SCENES;

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
    what_was_taken_back_is_not_written,
    bytes_arrive_in_a_devices_memory_and_nowhere_else,
    a_client_that_has_gone_is_not_written_to,
    what_is_outside_is_refused,
    a_node_may_write_there_and_not_read,
    devices_and_memory_that_cannot_do_it_say_so,
}
