//! Listings.

use super::*;

#[tokio::test]
async fn a_page_is_cut_and_continued() {
    let home = home();
    let keys = ["a", "a.b", "a/b", "a/c/d", "a0", "b/1", "b/2", "b/3", "c"];
    for key in ["a.b", "a/b", "a/c/d", "a0", "b/1", "b/2", "b/3", "c"] {
        home.write(&key.replace("a/", "x/"), key.as_bytes());
    }
    // A file and a directory cannot share a name: the directory is x here, and sorts there.
    let expected: Vec<String> = keys[1..]
        .iter()
        .map(|key| key.replace("a/", "x/"))
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    for limit in 1..=10 {
        let mut seen = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let page = home.silo.list("", after.as_deref(), limit).await.expect("a listing");
            assert!(page.objects.len() <= limit);
            seen.extend(page.objects.into_iter().map(|object| object.key));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(seen, expected, "pages of {limit}");
    }
    let page = home.silo.list("b/", Some("b/1"), 1).await.expect("a listing");
    assert_eq!((page.objects[0].key.as_str(), page.next.as_deref()), ("b/2", Some("b/2")));
    assert_eq!(page.objects[0], home.silo.head("b/2").await.expect("there"));
}

#[tokio::test]
async fn names_that_cannot_be_keys_are_left_out() {
    let home = home();
    home.write("good", b"x");
    let strange = home.path.path().join(OsStr::from_bytes(b"bad\xFFname"));
    std::fs::write(strange, b"x").expect("a file");
    home.write("line\nbreak", b"x");
    symlink(".", home.path.path().join("self")).expect("a link");
    let page = home.silo.list("", None, 10).await.expect("a listing");
    assert_eq!(page.objects.len(), 1);
    assert_eq!(page.objects[0].key, "good");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]
    #[test]
    fn listings_are_sorted_filtered_and_complete(
        keys in proptest::collection::btree_set("[ab.0]{1,2}(/[ab.0-]{1,2}){0,2}", 1..14),
        prefix in "[ab.0]{0,2}(/[ab]?)?",
        after in "[ab.0]{0,2}(/[ab.]{0,2})?",
        limit in 1usize..5,
    ) {
        let home = home();
        let mut written = BTreeSet::new();
        for key in keys {
            if name::check(&key).is_err() {
                continue;
            }
            let path = home.path.path().join(&key);
            let made = std::fs::create_dir_all(path.parent().expect("a parent"));
            if made.is_ok() && std::fs::write(path, b"").is_ok() {
                written.insert(key);
            }
        }
        let expected: Vec<&String> =
            written.iter().filter(|key| key.starts_with(&prefix) && **key > after).collect();
        let mut seen = Vec::new();
        let mut from = after.clone();
        loop {
            let page = Walk::new(&home.silo.root, &prefix, &from, limit).page().expect("a page");
            prop_assert!(page.objects.len() <= limit);
            seen.extend(page.objects.into_iter().map(|object| object.key));
            match page.next {
                Some(next) => from = next,
                None => break,
            }
        }
        prop_assert_eq!(seen.iter().collect::<Vec<_>>(), expected);
    }
}
