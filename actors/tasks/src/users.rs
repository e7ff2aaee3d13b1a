//! Users of images, looked up once for all containers that have the same layers.
//!
//! To look into a root file system it must be mounted, and unmounting waits for every processor of the host. What lies in
//! committed layers never changes: a layer that is replaced, since it was damaged, lies in another directory.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use cofferdam_oci::users::{User, resolve};
use cofferdam_types::{Mount, Result};

use crate::create::mounted;

/// Many containers are made of few images.
const KEPT: usize = 16;

/// Those that were looked up last.
#[derive(Clone, Debug, Default)]
pub struct Users(Arc<Mutex<VecDeque<Known>>>);

#[derive(Debug)]
struct Known {
    layers: Mount,
    name: String,
    user: User,
}

impl Users {
    /// What `name` is in a root file system that nobody has written to yet.
    pub(crate) fn look_up(&self, mounts: &[Mount], name: &str) -> Result<User> {
        let layers = match mounts {
            [one] => layers(one),
            _ => None,
        };
        let Some(layers) = layers else { return look(mounts, name) };
        let kept = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = kept().iter().find(|known| known.name == name && known.layers == layers) {
            return Ok(known.user.clone());
        }
        let user = look(std::slice::from_ref(&layers), name)?;
        let mut kept = kept();
        kept.truncate(KEPT - 1);
        kept.push_front(Known { layers, name: name.to_owned(), user: user.clone() });
        Ok(user)
    }
}

fn look(mounts: &[Mount], name: &str) -> Result<User> {
    let root = mounted(mounts)?;
    let user = resolve(&root, name);
    // Nobody waits for the unmounting here: it takes milliseconds.
    tokio::task::spawn_blocking(move || drop(root));
    user
}

/// An overlay without its writable layer, in which there is nothing yet: to unmount one that has it syncs the whole disk.
/// `None` for what isn't made of layers that stay as they are.
fn layers(mount: &Mount) -> Option<Mount> {
    let lower = mount.options.iter().find_map(|option| option.strip_prefix("lowerdir="));
    let (kind, source, options) = match lower.filter(|_| mount.kind == "overlay")? {
        one if !one.contains(':') => ("bind", one, vec!["ro".to_owned()]),
        _ => {
            let writable = |option: &str| option.starts_with("upperdir=") || option.starts_with("workdir=");
            ("overlay", "overlay", mount.options.iter().filter(|option| !writable(option)).cloned().collect())
        }
    };
    Some(Mount { kind: kind.to_owned(), source: source.to_owned(), options })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
        let options = options.iter().map(|o| (*o).to_owned()).collect();
        Mount { kind: kind.to_owned(), source: source.to_owned(), options }
    }

    #[test]
    fn what_is_only_read_has_no_writable_layer() {
        let overlay = |options: &[&str]| mount("overlay", "overlay", options);
        let one = layers(&overlay(&["workdir=/s/3/work", "upperdir=/s/3/fs", "lowerdir=/s/1/fs", "index=off"]));
        assert_eq!(one, Some(mount("bind", "/s/1/fs", &["ro"])));
        let two = layers(&overlay(&["workdir=/w", "upperdir=/u", "lowerdir=/s/2/fs:/s/1/fs", "index=off"]));
        assert_eq!(two.unwrap().options, ["lowerdir=/s/2/fs:/s/1/fs", "index=off"]);
        assert_eq!(layers(&mount("bind", "/s/1/fs", &["rw"])), None);
    }

    #[tokio::test]
    async fn a_user_is_looked_up_once_for_the_same_layers() {
        let dir = tempfile::tempdir().unwrap();
        let made = |layer: &str, passwd: &str| {
            let etc = dir.path().join(layer).join("etc");
            std::fs::create_dir_all(&etc).unwrap();
            std::fs::write(etc.join("passwd"), passwd).unwrap();
            let lower = format!("lowerdir={}", dir.path().join(layer).display());
            [mount("overlay", "overlay", &["workdir=/w", "upperdir=/u", &lower])]
        };
        let (users, first) = (Users::default(), made("1", "app:x:7:8::/srv:/bin/sh\n"));
        let uid = |mounts: &[Mount], name: &str| users.look_up(mounts, name).map(|user| user.uid);
        assert_eq!(uid(&first, "app").unwrap(), 7);
        uid(&first, "nobody").unwrap_err();
        let second = made("2", "app:x:9:9::/srv:/bin/sh\nnobody:x:99:99::/:/bin/sh\n");
        assert_eq!((uid(&second, "app").unwrap(), uid(&second, "nobody").unwrap()), (9, 99));
        // What is known needs no mount any more; nothing else is known.
        std::fs::remove_dir_all(dir.path().join("1")).unwrap();
        assert_eq!(uid(&first, "app").unwrap(), 7);
        uid(&first, "nobody").unwrap_err();
        // A directory that somebody writes to is looked into each time.
        let bind = [mount("bind", &dir.path().join("2").to_string_lossy(), &["ro"])];
        assert_eq!(uid(&bind, "app").unwrap(), 9);
        std::fs::write(dir.path().join("2/etc/passwd"), "app:x:10:10::/srv:/bin/sh\n").unwrap();
        assert_eq!(uid(&bind, "app").unwrap(), 10);
    }
}
