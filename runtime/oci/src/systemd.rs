//! Names of cgroups that systemd makes: `slice:prefix:name`, as runc-compatible binaries take them in `cgroupsPath`.

/// The name that a cgroup of ours (`/cofferdam/<daemon>/<namespace>/<id>`) has with systemd.
pub fn named(cgroup: &str) -> String {
    let parts: Vec<&str> = cgroup.trim_start_matches('/').split('/').collect();
    match parts.as_slice() {
        // Neither a namespace nor an id has two dashes side by side: no two pairs become one name.
        [slice @ .., namespace, id] if !slice.is_empty() => {
            format!("{}.slice:{}-{namespace}-:{id}", slice.join("-"), slice.join("-"))
        }
        _ => format!(":cofferdam:{}", parts.join("-")),
    }
}

/// Where systemd makes a cgroup of that name, from the root of its hierarchies; `None` if it is a path.
pub fn path(name: &str) -> Option<String> {
    let [slice, prefix, name] = name.split(':').collect::<Vec<_>>().try_into().ok()?;
    let slice = if slice.is_empty() { "system.slice" } else { slice };
    let mut path = String::new();
    // `-.slice` is the root; each dash of another is a step down.
    if let Some(stem) = slice.strip_suffix(".slice").filter(|stem| *stem != "-") {
        for (at, _) in stem.match_indices('-').chain([(stem.len(), "")]) {
            path.push_str(&format!("/{}.slice", &stem[..at]));
        }
    }
    let unit = match (name.ends_with(".slice"), prefix.is_empty()) {
        (true, _) => name.to_owned(),
        (false, true) => format!("{name}.scope"),
        (false, false) => format!("{prefix}-{name}.scope"),
    };
    Some(format!("{path}/{unit}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_where_systemd_puts_them() {
        for (name, expected) in [
            ("system.slice:runc:box", "/system.slice/runc-box.scope"),
            (":runc:box", "/system.slice/runc-box.scope"),
            ("a-b-c.slice:p:n", "/a.slice/a-b.slice/a-b-c.slice/p-n.scope"),
            ("-.slice:p:n", "/p-n.scope"),
            ("a.slice::n", "/a.slice/n.scope"),
            ("a.slice:p:a-n.slice", "/a.slice/a-n.slice"),
        ] {
            assert_eq!(path(name).as_deref(), Some(expected), "{name}");
        }
        assert_eq!(path("/plain/path"), None);
        assert_eq!(path("one:two"), None);
    }

    #[test]
    fn no_two_containers_have_one_name() {
        let name = named("/cofferdam/12345678/shop/box-1");
        assert_eq!(name, "cofferdam-12345678.slice:cofferdam-12345678-shop-:box-1");
        let expected = "/cofferdam.slice/cofferdam-12345678.slice/cofferdam-12345678-shop--box-1.scope";
        assert_eq!(path(&name).unwrap(), expected);
        assert_ne!(path(&named("/c/1/a-b/c")), path(&named("/c/1/a/b-c")));
    }
}
