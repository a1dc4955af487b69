//! Memory that its user knows by the address.
#![expect(unsafe_code, reason = "views of memory are what is tested")]

use extent::wire::OpenMode;
use extent::{Generation, Kind};
use rdma::Fabric;

use super::{FABRICS, finish, open, options, session};
use crate::fake::Fake;

#[test]
pub(super) fn a_read_never_leaves_memory_that_is_known_by_its_address() {
    for (fabric, under_way) in FABRICS.into_iter().flat_map(|it| [(it, false), (it, true)]) {
        let fake = Fake::new();
        let bytes = fake.add_file("data/a", 10_000);
        let mut session = session(&fake, fabric, 1, &options());
        let newest = OpenMode::Read(Generation(0));
        let (file, _) = open(&mut session, "data/a", newest).expect("there");
        let mut memory = session.allocate(3000).expect("memory");
        memory.as_mut_slice().fill(7);
        assert!(session.reaches(&memory));
        if !under_way {
            fake.restart();
        }
        // SAFETY: the memory outlives the read, which is waited for, and is not used meanwhile.
        let view = unsafe { memory.view(1000..2000) };
        let ticket = session.submit_read(file, 500, view, 0..1000).expect("taken");
        if under_way {
            session.kick();
            fake.restart();
        }
        let done = finish(&mut session, ticket);
        let is_lost = fabric == Fabric::SharedMemory;
        assert_eq!(session.reaches(&memory), !is_lost, "{fabric:?}");
        if is_lost {
            let error = done.result.expect_err("its memory is gone");
            assert_eq!(error.kind(), Kind::Disconnected);
            assert!(error.context().contains("free it"), "{error}");
        } else {
            assert_eq!(done.bytes, 1000);
            assert!(memory.as_slice()[1000..2000] == bytes[500..1500]);
        }
        let rest = memory.as_slice()[..1000].iter().chain(&memory.as_slice()[2000..]);
        assert!(rest.copied().all(|byte| byte == 7));
    }
}
