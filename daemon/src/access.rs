//! Who is granted what by connecting: beside the operator, who has everything, nobody has anything unless it stands here.
//!
//! A rule names a grant by its namespace and its label, so that it is there before the grant is and outlives it: whoever makes
//! another of that label in its place gives it to the same people.

use cofferdam_types::{Error, Namespace, Peer, Result};

/// To whom a rule applies, as the kernel says who connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    User(u32),
    /// That process's own group, and none of its others: of those the kernel tells nothing.
    Group(u32),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    who: Who,
    namespace: Namespace,
    label: String,
}

/// The rules, in their order: those for users come before those for groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access(Vec<Rule>);

impl Access {
    /// Adds one: `user:UID=NAMESPACE/LABEL`, or `group:GID=NAMESPACE/LABEL`.
    pub fn add(&mut self, text: &str) -> Result<()> {
        let bad = || {
            let why =
                "is no rule: write user:UID=NAMESPACE/LABEL or group:GID=NAMESPACE/LABEL, with the label of a grant";
            Error::invalid("access", text.escape_debug(), why)
        };
        let (who, grant) = text.split_once('=').ok_or_else(bad)?;
        let (namespace, label) = grant.split_once('/').filter(|(_, label)| !label.is_empty()).ok_or_else(bad)?;
        let who = match who.split_once(':') {
            Some(("user", uid)) => Who::User(uid.parse().map_err(|_| bad())?),
            Some(("group", gid)) => Who::Group(gid.parse().map_err(|_| bad())?),
            _ => return Err(bad()),
        };
        if self.0.iter().any(|rule| rule.who == who) {
            return Err(Error::invalid(
                "access",
                text.escape_debug(),
                "is a second rule for the same: one says what is granted",
            ));
        }
        self.0.push(Rule { who, namespace: Namespace::new(namespace)?, label: label.to_owned() });
        Ok(())
    }

    /// The namespace and the label of what is granted to a peer.
    pub fn find(&self, peer: &Peer) -> Option<(&Namespace, &str)> {
        let Peer::Unix { uid, gid, .. } = peer;
        let rule = |who: Who| self.0.iter().find(|rule| rule.who == who);
        let rule = rule(Who::User(*uid)).or_else(|| rule(Who::Group(*gid)))?;
        Some((&rule.namespace, &rule.label))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_comes_before_a_group_and_nobody_else_has_anything() {
        let mut access = Access::default();
        access.add("group:7=shop/readers of logs").unwrap();
        access.add("user:1000=default/watch/er").unwrap();
        let find = |uid, gid| access.find(&Peer::Unix { uid, gid, pid: 1 }).map(|(ns, label)| format!("{ns} {label}"));
        assert_eq!(find(1000, 7).as_deref(), Some("default watch/er"));
        assert_eq!(find(1001, 7).as_deref(), Some("shop readers of logs"));
        assert_eq!((find(7, 1000), find(0, 0)), (None, None));
        for bad in
            ["", "user:1", "user:x=a/b", "user:=a/b", "user:-1=a/b", "all=a/b", "user:1=a", "user:1=a/", "user:1=/b"]
        {
            assert!(access.add(bad).is_err(), "{bad}");
        }
        assert!(access.add("user:1000=default/other").unwrap_err().message.contains("second rule"));
    }
}
