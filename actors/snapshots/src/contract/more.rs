//! More of the suite: snapshots of each kind, times, and what differs.

use std::{
    fs,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{MetadataExt, PermissionsExt},
    },
};

use cofferdam_types::{Authority, Code, Labels};

use super::{Mounted, Suite, name, ns};

impl Suite<'_> {
    /// Labels of snapshots of each kind change, by themselves, and so does one that is asked for within a list.
    pub async fn each_kind_is_updated_and_listed_as_it_is(&self) {
        let keys = ["kind-c1", "kind-c2", "kind-a1", "kind-a2", "kind-v1", "kind-v2"];
        self.layer("kind-c1", None, |_| {}).await;
        self.layer("kind-c2", Some("kind-c1"), |_| {}).await;
        self.prepare("kind-a1", Some("kind-c2")).await.unwrap();
        self.prepare("kind-a2", None).await.unwrap();
        self.view("kind-v1", Some("kind-c2")).await.unwrap();
        self.view("kind-v2", None).await.unwrap();
        let all = &self.world.snapshots;
        for key in keys {
            let before = self.stat(key).unwrap();
            assert_eq!(before.created, before.updated, "{key}");
            let labels = Labels::from([("of".to_owned(), key.to_owned())]);
            let auth = Authority::system();
            let after = all.update(&auth, &ns(), self.driver, &name(key), labels.clone(), Vec::new()).await.unwrap();
            assert!(after.updated > before.updated && after.labels == labels, "{key}");
            assert_eq!(
                (after.kind, after.parent, after.created),
                (before.kind, before.parent, before.created),
                "{key}"
            );
        }
        let mut after: Option<String> = None;
        let mut seen = 0;
        // One at a time: between two of them others are asked for.
        while let [listed] = &all.list(&ns(), self.driver, after.as_deref(), 1).unwrap()[..] {
            assert_eq!(*listed, self.stat(&listed.key).unwrap());
            seen += usize::from(keys.contains(&listed.key.as_str()));
            after = Some(listed.key.to_string());
        }
        assert_eq!(seen, keys.len());
        assert_eq!(self.stat("kind-c2").unwrap().parent, Some(name("kind-c1")));
        assert_eq!(self.stat("kind-c1").unwrap().parent, None);
        for key in ["kind-v2", "kind-v1", "kind-a2", "kind-a1", "kind-c2", "kind-c1"] {
            self.remove(key).await.unwrap();
        }
    }

    /// Size and time of a file in an upper layer say nothing, whatever part of a second it was changed in.
    pub async fn a_change_is_seen_whatever_the_time(&self) {
        let whole = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_600_000_000);
        let times = [0, 1, 499_999_999, 500_000_000, 999_999_999].map(|n| whole + std::time::Duration::from_nanos(n));
        for (n, time) in times.into_iter().enumerate() {
            let write = |m: &Mounted, text: &str| {
                m.write("file", text);
                fs::File::open(m.at("file")).unwrap().set_modified(time).unwrap();
            };
            let (below, above) = (format!("time-{n}"), format!("time-{n}-above"));
            self.layer(&below, None, |m| write(m, "one")).await;
            self.layer(&above, Some(&below), |m| {
                write(m, "two");
                fs::set_permissions(m.at("file"), fs::Permissions::from_mode(0o4710)).unwrap();
            })
            .await;
            self.seen(&above, |m| {
                assert_eq!(m.read("file").as_deref(), Some("two"));
                assert_eq!(fs::metadata(m.at("file")).unwrap().mode() & 0o7777, 0o4710);
            })
            .await;
            self.remove(&above).await.unwrap();
            self.remove(&below).await.unwrap();
        }
    }

    /// What differs is the same whether it is compared before the commit, after it, or beside what lies below.
    pub async fn what_differs_can_be_told(&self) {
        self.layer("differ-1", None, |m| {
            m.dir("dir");
            m.write("dir/gone", "1");
        })
        .await;
        let active = self.prepare("differ-a", Some("differ-1")).await.unwrap();
        fs::remove_file(active.at("dir/gone")).unwrap();
        active.write("dir/new", "2");
        drop(active);
        let all = &self.world.snapshots;
        let shown = |tree: &OwnedFd| {
            let place = format!("/proc/self/fd/{}/dir", tree.as_raw_fd());
            let names = fs::read_dir(place).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
            names.collect::<std::collections::BTreeSet<_>>()
        };
        let changes = all.changes(&ns(), self.driver, &name("differ-a"), None).unwrap();
        assert_eq!(shown(changes.lower.as_ref().unwrap()), ["gone".to_owned()].into());
        assert!(shown(&changes.upper).contains("new"));
        drop(changes);
        self.commit("differ-2", "differ-a").await.unwrap();
        self.view("differ-v", Some("differ-2")).await.unwrap();
        for (key, base) in [("differ-v", "differ-1"), ("differ-v", "differ-2"), ("differ-1", "differ-2")] {
            let changes = all.changes(&ns(), self.driver, &name(key), Some(&name(base))).unwrap();
            let new = |of: &str| if of == "differ-1" { "gone" } else { "new" }.to_owned();
            assert_eq!(shown(&changes.upper), [new(key)].into(), "{key}");
            assert_eq!(shown(changes.lower.as_ref().unwrap()), [new(base)].into(), "{base}");
            assert!(!changes.overlay);
        }
        for key in ["differ-v", "differ-2", "differ-1"] {
            self.remove(key).await.unwrap();
        }
        assert_eq!(all.changes(&ns(), self.driver, &name("none"), None).err().unwrap().code, Code::NotFound);
    }
}
