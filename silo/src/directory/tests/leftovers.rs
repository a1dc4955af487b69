//! What uploads of earlier processes left behind.

use super::*;
use crate::directory::leftovers;

/// What every upload of one tier is known by.
fn ours() -> IsOurs {
    Arc::new(|tags: UploadTags| tags.file == TAGS.file)
}

impl Home {
    /// A draft that another process began: its name tells.
    fn draft_of_another_process(&self, directory: &str, tags: UploadTags) -> String {
        let key = format!("{directory}k");
        let draft = upload::draft(&self.silo.root, &key, Condition::Absent, tags, b"half");
        std::mem::forget(draft.expect("a draft"));
        let at = self.path.path().join(directory);
        let names = std::fs::read_dir(&at).expect("the directory");
        let mut made = names.map(|name| name_of(&name));
        let made = made.find(|name| name::is_of_this_process(name, tags)).expect("a draft");
        let left = format!("{}{:032x}.part", name::part_stem(tags), 1);
        std::fs::rename(at.join(made), at.join(&left)).expect("renamed");
        format!("{directory}{left}")
    }

    fn is_there(&self, key: &str) -> bool {
        self.path.path().join(key).exists()
    }
}

#[tokio::test]
async fn only_leftovers_that_are_clearly_ours_are_removed() {
    let home = home();
    home.write("d/f", b"kept");
    let left = home.draft_of_another_process("", TAGS);
    let deep = home.draft_of_another_process("d/e/", UploadTags { attempt: Attempt(7), ..TAGS });
    let theirs = UploadTags { file: FileId(0xEF), ..TAGS };
    let theirs = home.draft_of_another_process("d/", theirs);
    // What an exchange took out keeps the tags of an earlier upload, if any.
    let untagged = format!("{}{:032x}.part", name::part_stem(TAGS), 2);
    home.write(&untagged, b"somebody's");
    let earlier = format!("{}{:032x}.part", name::part_stem(TAGS), 3);
    home.write(&earlier, b"somebody's");
    let file = File::open(home.path.path().join(&earlier)).expect("there");
    stat::set_tags(&file, UploadTags { attempt: Attempt(1), ..TAGS }).expect("set");
    assert_eq!(home.silo.remove_leftovers(ours()).await.expect("walked"), 2);
    assert!(!home.is_there(&left) && !home.is_there(&deep));
    assert!(home.is_there(&theirs) && home.is_there(&untagged) && home.is_there(&earlier));
    assert_eq!(home.bytes("d/f"), b"kept");
}

#[tokio::test]
async fn an_upload_under_way_is_no_leftover() {
    let home = home();
    let left = home.draft_of_another_process("", TAGS);
    // Of a second silo in the same place, too.
    let limits = Limits::new(&LimitOptions::default());
    let second = Directory::open(home.path.path(), limits, true).expect("the directory");
    let mut upload = second.upload("f", 3, Condition::Absent, TAGS).await.expect("begun");
    upload.append(Bytes::from_static(b"new")).await.expect("written");
    assert_eq!(home.silo.remove_leftovers(ours()).await.expect("walked"), 1);
    assert!(!home.is_there(&left));
    upload.finish().await.expect("published");
    assert_eq!(home.bytes("f"), b"new");
}

#[tokio::test]
async fn whoever_gives_up_waiting_ends_the_walk() {
    let home = home();
    for n in 0..3 {
        home.draft_of_another_process(&format!("d{n}/"), TAGS);
    }
    let (asked, asks) = std::sync::mpsc::sync_channel(3);
    let (answer, answers) = std::sync::mpsc::sync_channel::<()>(0);
    let answers = parking_lot::Mutex::new(answers);
    let is_ours: IsOurs = Arc::new(move |_| {
        asked.send(()).expect("somebody listens");
        // Until the walk was given up.
        answers.lock().recv().is_err()
    });
    let walk = tokio::spawn({
        let (root, is_ours) = (Arc::clone(&home.silo.root), is_ours);
        async move { leftovers::remove(root, is_ours).await }
    });
    let asks = tokio::task::spawn_blocking(move || asks.recv().map(|()| asks));
    let asks = asks.await.expect("no panic").expect("the walk began");
    walk.abort();
    assert!(walk.await.expect_err("aborted").is_cancelled());
    drop(answer);
    // The walk ends when it drops the closure, and was asked about no second file.
    let more = tokio::task::spawn_blocking(move || asks.recv());
    more.await.expect("no panic").expect_err("the walk went on");
}
