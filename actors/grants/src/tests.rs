//! Grants over real tables, around restarts.

use std::{collections::BTreeSet, path::Path, sync::Arc, time::Duration};

use cofferdam_kernel::{Kernel, Placement};
use cofferdam_metadata::{
    Metadata, Tx,
    records::{
        containers::{self, Container},
        grants as records,
    },
};
use cofferdam_types::{
    Any, Authority, Caveats, Code, Error, Facet, GrantId, Id, Namespace, Right, Rights, Timestamp, Which,
};

use crate::{End, Grants, Live, NewGrant, Node, Token, tree::Tree};

const SHARED: Placement = Placement::Shared("test");

struct World {
    kernel: Kernel,
    metadata: Metadata,
    grants: Grants,
}

impl World {
    async fn start(dir: &Path) -> World {
        let kernel = Kernel::new().unwrap();
        let metadata = Metadata::start(&kernel, Placement::Own, &dir.join("meta.redb")).unwrap();
        let grants = Grants::start(&kernel, SHARED, metadata.clone()).unwrap();
        kernel.ready().await.unwrap();
        World { kernel, metadata, grants }
    }

    async fn make(&self, above: &Authority, caveats: Caveats) -> Result<Arc<Node>, Error> {
        self.grants.create(above, new(caveats)).await
    }

    fn ids(&self) -> Vec<GrantId> {
        let all = records::list(&self.metadata.read().unwrap(), &[], None, 99).unwrap();
        all.into_iter().map(|(_, grant)| grant.id).collect()
    }
}

fn new(caveats: Caveats) -> NewGrant {
    NewGrant { namespace: Namespace::default_namespace(), label: "test".into(), caveats, uses: None, own: false }
}

fn root() -> Authority {
    Authority::system()
}

/// Who holds this grant.
fn holder(node: &Node) -> Authority {
    Authority { grants: node.path.clone(), ceiling: node.caveats.ceiling.clone(), ..Authority::system() }
}

fn run(test: impl AsyncFnOnce(&Path)) {
    let dir = tempfile::tempdir().unwrap();
    actix_rt::System::new().block_on(async { test(dir.path()).await });
}

#[track_caller]
fn code<T: std::fmt::Debug>(result: Result<T, Error>, code: Code) -> Error {
    let error = result.unwrap_err();
    assert_eq!(error.code, code, "{error}");
    error
}

#[test]
fn z6_revoking_ends_what_comes_from_a_grant_and_it_stays_so() {
    run(async |dir| {
        let world = World::start(dir).await;
        let top = world.make(&root(), Caveats::none()).await.unwrap();
        let other = world.make(&root(), Caveats::none()).await.unwrap();
        let child = world.make(&holder(&top), Caveats::none()).await.unwrap();
        let grandchild = world.make(&holder(&child), Caveats::none()).await.unwrap();
        // What a connection has of it, and waits with.
        let connection = Live::below(&[&grandchild.live, &Live::new()]);
        let waits = connection.until_ended();
        world.grants.revoke(&root(), child.id()).await.unwrap();
        assert_eq!(waits.await, End::Revoked);
        assert!(child.live.end().is_some() && grandchild.live.end().is_some());
        assert!(top.live.end().is_none() && other.live.end().is_none());
        assert_eq!(BTreeSet::from_iter(world.ids()), BTreeSet::from([top.id(), other.id()]));
        code(world.grants.get(&root(), grandchild.id()), Code::NotFound);
        code(world.make(&holder(&child), Caveats::none()).await, Code::Revoked);
        assert_eq!(Live::below(&[&grandchild.live]).end(), Some(End::Revoked), "born without a life");
        world.kernel.stop().await;

        let world = World::start(dir).await;
        code(world.grants.get(&root(), child.id()), Code::NotFound);
        world.grants.get(&root(), top.id()).unwrap();
        world.kernel.stop().await;
    });
}

#[test]
fn z2_only_what_comes_from_a_grant_is_there_for_it() {
    run(async |dir| {
        let world = World::start(dir).await;
        let [one, other] =
            [world.make(&root(), Caveats::none()).await.unwrap(), world.make(&root(), Caveats::none()).await.unwrap()];
        let child = world.make(&holder(&one), Caveats::none()).await.unwrap();
        let (me, ns) = (holder(&one), Namespace::default_namespace());
        // Itself, what it comes from, and what comes from others.
        for (who, id) in [(&me, one.id()), (&me, other.id()), (&holder(&child), one.id()), (&me, GrantId(0))] {
            code(world.grants.get(who, id), Code::NotFound);
            code(world.grants.revoke(who, id).await, Code::NotFound);
            code(world.grants.save(who, id, None).await, Code::NotFound);
        }
        let listed = |who: &Authority| -> Vec<GrantId> {
            world.grants.list(who, &ns, None, 99).unwrap().iter().map(|node| node.id()).collect()
        };
        assert_eq!(listed(&me), [child.id()]);
        assert!(listed(&holder(&child)).is_empty());
        assert_eq!(listed(&root()).len(), 3);
        let after = world.grants.list(&root(), &ns, None, 1).unwrap();
        let rest = world.grants.list(&root(), &ns, Some(&after[0].path), 99).unwrap();
        assert_eq!(rest.len(), 2);
        world.kernel.stop().await;
    });
}

#[test]
fn z5_a_grant_has_what_its_whole_path_leaves_also_after_a_restart() {
    run(async |dir| {
        let world = World::start(dir).await;
        let only = |rights: &[Right]| Caveats { rights: Rights::of(rights.iter().copied()), ..Caveats::none() };
        let top = world.make(&root(), only(&[Right::Run])).await.unwrap();
        let child = world.make(&holder(&top), only(&[Right::Host])).await.unwrap();
        assert_eq!(child.caveats.rights, Rights::of([Right::Run]));
        assert!(!child.caveats.ceiling.host && !child.caveats.ceiling.may_connect());
        let wish = Which { ids: Some([Id::new("web").unwrap()].into()), ..Which::default() };
        let logs = Caveats { containers: wish, facets: vec![[Facet::Logs].into()], ..Caveats::none() };
        let logs = world.make(&holder(&child), logs).await.unwrap();
        // What reaches nothing is no grant.
        let more = Which { ids: Some([Id::new("db").unwrap()].into()), ..Which::default() };
        code(world.make(&holder(&logs), Caveats { containers: more, ..Caveats::none() }).await, Code::Denied);
        world.kernel.stop().await;

        let world = World::start(dir).await;
        let again = world.grants.get(&root(), logs.id()).unwrap();
        assert_eq!((&again.caveats, &again.path), (&logs.caveats, &logs.path));
        assert_eq!(again.caveats.rights, Rights::of([Right::Run]));
        world.kernel.stop().await;
    });
}

#[test]
fn z8_a_token_is_for_whom_it_was_made_and_is_not_on_disk() {
    run(async |dir| {
        let world = World::start(dir).await;
        let node = world.make(&root(), Caveats::none()).await.unwrap();
        let token = world.grants.save(&root(), node.id(), Some(1000)).await.unwrap();
        assert_eq!(world.grants.restore(token.clone(), 1000).await.unwrap().id(), node.id());
        for uid in [0, 1001] {
            let error = code(world.grants.restore(token.clone(), uid).await, Code::Denied);
            assert!(!error.to_reason().contains(token.reveal()), "{error}");
        }
        assert!(!format!("{token:?}").contains(&token.reveal()[20..]));
        let unknown = Token::random().unwrap();
        code(world.grants.restore(unknown, 1000).await, Code::Denied);
        world.kernel.stop().await;
        let bytes = std::fs::read(dir.join("meta.redb")).unwrap();
        let hex = token.reveal().rsplit('-').next().unwrap().as_bytes();
        assert!(!bytes.windows(hex.len()).any(|window| window == hex));

        let world = World::start(dir).await;
        assert_eq!(world.grants.restore(token.clone(), 1000).await.unwrap().id(), node.id());
        // Another one, and the older is worth nothing.
        let newer = world.grants.save(&root(), node.id(), None).await.unwrap();
        code(world.grants.restore(token, 1000).await, Code::Denied);
        world.grants.restore(newer.clone(), 7).await.unwrap();
        world.grants.revoke(&root(), node.id()).await.unwrap();
        code(world.grants.restore(newer, 7).await, Code::Denied);
        world.kernel.stop().await;
    });
}

#[test]
fn what_is_no_token_is_not_repeated() {
    for text in ["", "secret", "cofferdam-grant-", &format!("cofferdam-grant-{}", "G".repeat(64))] {
        let error = code(Token::read(text), Code::InvalidArgument);
        assert!(!error.to_reason().contains("secret") && !error.to_reason().contains("GGG"), "{error}");
    }
    let token = Token::random().unwrap();
    assert_eq!(Token::read(&format!("{}\n", token.reveal())).unwrap(), token);
}

#[test]
fn a_token_may_be_used_so_often() {
    run(async |dir| {
        let world = World::start(dir).await;
        let twice = NewGrant { uses: Some(2), ..new(Caveats::none()) };
        let node = world.grants.create(&root(), twice).await.unwrap();
        let token = world.grants.save(&root(), node.id(), None).await.unwrap();
        world.grants.restore(token.clone(), 0).await.unwrap();
        world.kernel.stop().await;
        let world = World::start(dir).await;
        world.grants.restore(token.clone(), 0).await.unwrap();
        code(world.grants.restore(token, 0).await, Code::Denied);
        world.kernel.stop().await;
    });
}

#[test]
fn a_container_that_is_chosen_no_more_is_out_of_reach_from_then_on() {
    run(async |dir| {
        let world = World::start(dir).await;
        let (ns, web, db) = (Namespace::default_namespace(), Id::new("web").unwrap(), Id::new("db").unwrap());
        let label = async |id: &Id, tier: &str| {
            let labels = [("tier".to_owned(), tier.to_owned())].into();
            let spec = Any { type_url: "spec".into(), value: b"{}".to_vec() };
            let (ns, one) = (ns.clone(), Container { labels, ..Container::new(id.clone(), "native", spec) });
            let write = move |tx: &mut Tx<'_>| match containers::exists(tx, &ns, &one.id)? {
                true => containers::update_fields(tx, &ns, one.clone(), &["labels".to_owned()]).map(drop),
                false => containers::create(tx, &ns, one.clone()).map(drop),
            };
            world.metadata.write(&root(), write).await.unwrap();
        };
        label(&web, "front").await;
        label(&db, "front").await;
        let filters = vec![vec!["labels.tier==front".to_owned()]];
        let (containers, facets) = (Which { filters, ..Which::default() }, vec![[Facet::Logs].into()]);
        let some = Caveats { containers, facets, ..Caveats::none() };
        let [some, all] = [some, Caveats::none()];
        let [some, all] = [world.make(&root(), some).await.unwrap(), world.make(&root(), all).await.unwrap()];
        let (mut left, mut stays, mut other) = (
            Box::pin(world.grants.until_out_of_reach(some.id(), &web)),
            Box::pin(world.grants.until_out_of_reach(some.id(), &db)),
            Box::pin(world.grants.until_out_of_reach(all.id(), &web)),
        );
        tokio::select! {
            biased;
            () = &mut left => panic!("it is chosen"),
            () = &mut stays => panic!("it is chosen"),
            () = &mut other => panic!("all are"),
            () = label(&web, "back") => {}
        }
        tokio::time::timeout(Duration::from_secs(10), left).await.unwrap();
        // At once, where it is so already.
        world.grants.until_out_of_reach(some.id(), &web).await;
        tokio::select! {
            biased;
            () = &mut stays => panic!("another was changed"),
            () = &mut other => panic!("all are chosen"),
            () = label(&db, "front") => {}
        }
        world.grants.revoke(&root(), some.id()).await.unwrap();
        tokio::time::timeout(Duration::from_secs(10), stays).await.unwrap();
        world.kernel.stop().await;
    });
}

#[test]
fn its_time_is_a_revocation() {
    run(async |dir| {
        let world = World::start(dir).await;
        let soon = |millis: u64| Some(Timestamp(Timestamp::now().0 + millis * 1_000_000));
        let short = world.make(&root(), Caveats { not_after: soon(150), ..Caveats::none() }).await.unwrap();
        let child =
            world.make(&holder(&short), Caveats { not_after: soon(3_600_000), ..Caveats::none() }).await.unwrap();
        let long = world.make(&root(), Caveats { not_after: soon(3_600_000), ..Caveats::none() }).await.unwrap();
        assert_eq!(child.caveats.not_after, short.caveats.not_after);
        let ended = tokio::time::timeout(Duration::from_secs(10), child.live.until_ended()).await;
        assert_eq!(ended.unwrap(), End::Expired);
        code(world.make(&holder(&short), Caveats::none()).await, Code::Revoked);
        assert!(long.live.end().is_none());
        let past = Caveats { not_after: Some(Timestamp(1)), ..Caveats::none() };
        code(world.make(&root(), past).await, Code::InvalidArgument);
        world.kernel.stop().await;
        let world = World::start(dir).await;
        code(world.grants.get(&root(), short.id()), Code::NotFound);
        world.kernel.stop().await;
    });
}

#[test]
fn one_that_ended_while_nobody_ran_is_known_until_its_socket_is_gone() {
    run(async |dir| {
        let world = World::start(dir).await;
        let row = |id, not_after| {
            let caveats = Caveats { not_after: Some(Timestamp(not_after)), ..Caveats::none() };
            let exported = Some(format!("/run/{id}"));
            records::Grant { exported, ..records::Grant::new(GrantId(id), Namespace::default_namespace(), caveats) }
        };
        let rows = move |tx: &mut cofferdam_metadata::Tx<'_>| {
            records::create(tx, &[], row(1, 1))?;
            records::create(tx, &[GrantId(1)], row(2, u64::MAX))?;
            records::create(tx, &[], row(3, u64::MAX))
        };
        world.metadata.write(&root(), rows).await.unwrap();
        world.kernel.stop().await;

        let world = World::start(dir).await;
        let ended = [1, 2].map(|id| (GrantId(id), format!("/run/{id}")));
        assert_eq!(world.grants.ended().unwrap(), ended);
        let there: Vec<_> = world.grants.exported().unwrap().into_iter().map(|(_, directory)| directory).collect();
        assert_eq!(there, ["/run/3"]);
        assert_eq!(world.ids().len(), 3);
        world.grants.forget_ended();
        while world.ids() != [GrantId(3)] {
            tokio::task::yield_now().await;
        }
        world.kernel.stop().await;
    });
}

// The disk stalls while the commit that forgets the first is under way.
#[test]
fn one_ends_in_time_though_another_can_not_be_forgotten() {
    run(async |dir| {
        let world = World::start(dir).await;
        let until = |millis: u64| Caveats {
            not_after: Some(Timestamp(Timestamp::now().0 + millis * 1_000_000)),
            ..Caveats::none()
        };
        let first = world.make(&root(), until(1500)).await.unwrap();
        let second = world.make(&root(), until(1700)).await.unwrap();
        let (release, held) = std::sync::mpsc::channel::<()>();
        let held = std::sync::Mutex::new(held);
        let stalled = world.metadata.clone();
        let stalled = tokio::task::spawn_local(async move {
            let stall = move |_: &mut cofferdam_metadata::Tx<'_>| {
                let _ = held.lock().unwrap().recv();
                Ok(())
            };
            stalled.write(&root(), stall).await
        });
        for grant in [&first, &second] {
            let ended = tokio::time::timeout(Duration::from_secs(5), grant.live.until_ended()).await;
            assert_eq!(ended.unwrap(), End::Expired);
        }
        assert_eq!(world.ids().len(), 2);
        drop(release);
        stalled.await.unwrap().unwrap();
        while !world.ids().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        world.kernel.stop().await;
    });
}

#[test]
fn who_may_not_pass_on_or_keep_is_told_so() {
    run(async |dir| {
        let world = World::start(dir).await;
        let mine = world.make(&root(), Caveats { may_delegate: false, ..Caveats::none() }).await.unwrap();
        code(world.make(&holder(&mine), Caveats::none()).await, Code::Denied);
        let passing = world.make(&root(), Caveats { may_save: false, ..Caveats::none() }).await.unwrap();
        let child = world.make(&holder(&passing), Caveats::none()).await.unwrap();
        code(world.grants.save(&holder(&passing), child.id(), None).await, Code::Denied);
        world.grants.save(&root(), passing.id(), None).await.unwrap();
        // In no other namespace.
        let elsewhere = NewGrant { namespace: Namespace::new("shop").unwrap(), ..new(Caveats::none()) };
        code(world.grants.create(&holder(&passing), elsewhere).await, Code::Denied);
        world.kernel.stop().await;
    });
}

#[test]
fn a_row_whose_parent_is_lost_gives_nothing() {
    let tree = Tree::default();
    let ns = Namespace::default_namespace();
    let row = |id, ns: &Namespace| records::Grant::new(GrantId(id), ns.clone(), Caveats::none());
    assert!(tree.insert(&[GrantId(1), GrantId(2)], &row(2, &ns)).is_none());
    tree.insert(&[GrantId(1)], &row(1, &ns)).unwrap();
    tree.insert(&[GrantId(1), GrantId(2)], &row(2, &ns)).unwrap();
    // Nor one that says that it lies elsewhere.
    assert!(tree.insert(&[GrantId(1), GrantId(3)], &row(3, &Namespace::new("shop").unwrap())).is_none());
    assert!(tree.insert(&[GrantId(9), GrantId(2), GrantId(4)], &row(4, &ns)).is_none());
}

#[test]
fn the_one_of_a_label_is_found_for_as_long_as_it_is_the_only_one() {
    run(async |dir| {
        let world = World::start(dir).await;
        let ns = Namespace::default_namespace();
        let labelled = |label: &str| NewGrant { label: label.into(), ..new(Caveats::none()) };
        code(world.grants.labelled(&ns, "watcher"), Code::Denied);
        let first = world.grants.create(&root(), labelled("watcher")).await.unwrap();
        // Who holds a grant gives none that the operator's rules are about.
        world.grants.create(&holder(&first), labelled("watcher")).await.unwrap();
        assert_eq!(world.grants.labelled(&ns, "watcher").unwrap().id(), first.id());
        code(world.grants.labelled(&Namespace::new("shop").unwrap(), "watcher"), Code::Denied);
        let second = world.grants.create(&root(), labelled("watcher")).await.unwrap();
        let error = code(world.grants.labelled(&ns, "watcher"), Code::Denied);
        assert!(error.message.contains("2 are called"), "{error}");
        world.grants.revoke(&root(), first.id()).await.unwrap();
        assert_eq!(world.grants.labelled(&ns, "watcher").unwrap().id(), second.id());
        world.kernel.stop().await;
        let world = World::start(dir).await;
        assert_eq!(world.grants.labelled(&ns, "watcher").unwrap().id(), second.id());
        world.grants.revoke(&root(), second.id()).await.unwrap();
        code(world.grants.labelled(&ns, "watcher"), Code::Denied);
        world.kernel.stop().await;
    });
}

#[test]
fn ending_one_of_many_leaves_the_others() {
    let top = Live::new();
    let mut all: Vec<_> = (0..100_000).map(|_| Live::below(&[&top])).collect();
    all[7].finish(End::Revoked);
    assert_eq!(all.iter().filter(|live| live.end().is_some()).count(), 1);
    all.truncate(10);
    assert_eq!(top.held(), 10);
    top.finish(End::Closed);
    assert!(all.iter().all(|live| live.end().is_some()));
    assert_eq!(all[7].end(), Some(End::Revoked), "the first reason stays");
}
