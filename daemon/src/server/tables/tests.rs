use capnp::message::Builder;

use super::*;

/// A message, as `what` fills it.
fn message(what: impl FnOnce(message::Builder<'_>)) -> Builder<capnp::message::HeapAllocator> {
    let mut built = Builder::new_default();
    what(built.init_root());
    built
}

fn comes(tables: &mut Tables, what: impl FnOnce(message::Builder<'_>)) -> Fate {
    tables.comes(message(what).get_root_as_reader().unwrap()).unwrap()
}

fn goes(tables: &mut Tables, what: impl FnOnce(message::Builder<'_>), size: usize) {
    tables.goes(message(what).get_root_as_reader().unwrap(), size).unwrap();
}

fn call(tables: &mut Tables, question: u32, on: Option<u32>) -> Fate {
    comes(tables, |root| {
        let mut call = root.init_call();
        call.set_question_id(question);
        let mut target = call.init_target();
        match on {
            Some(answer) => {
                let mut on = target.init_promised_answer();
                on.set_question_id(answer);
                on.init_transform(3);
            }
            None => target.set_imported_cap(0),
        }
    })
}

fn finish(tables: &mut Tables, question: u32) {
    comes(tables, |root| root.init_finish().set_question_id(question));
}

#[test]
fn an_answer_costs_until_it_is_finished() {
    let mut tables = Tables::default();
    call(&mut tables, 7, None);
    comes(&mut tables, |root| root.init_bootstrap().set_question_id(8));
    assert_eq!(tables.bytes(), 2 * OVERHEAD);
    goes(&mut tables, |root| root.init_return().set_answer_id(7), 10_000);
    assert_eq!(tables.bytes(), 2 * OVERHEAD + 10_000);
    finish(&mut tables, 7);
    finish(&mut tables, 7);
    finish(&mut tables, 8);
    // One that says itself that it need not be finished.
    call(&mut tables, 7, None);
    let done = |root: message::Builder<'_>| {
        let mut answer = root.init_return();
        answer.set_answer_id(7);
        answer.set_no_finish_needed(true);
    };
    goes(&mut tables, done, 10_000);
    goes(&mut tables, done, 10_000);
    assert_eq!((tables.bytes(), tables.answers.len()), (0, 0));
}

#[test]
fn what_waits_for_an_answer_costs_until_that_comes() {
    let mut tables = Tables::default();
    call(&mut tables, 0, None);
    for question in 1..=100 {
        call(&mut tables, question, Some(0));
        finish(&mut tables, question);
    }
    assert_eq!(tables.bytes(), OVERHEAD + 100 * (OVERHEAD + 24), "those that were given up too");
    goes(&mut tables, |root| root.init_return().set_answer_id(0), 100);
    call(&mut tables, 101, Some(0));
    finish(&mut tables, 101);
    assert_eq!(tables.bytes(), OVERHEAD + 100);
}

#[test]
fn a_promise_that_is_a_promise_is_not_followed() {
    let mut tables = Tables::default();
    let named = comes(&mut tables, |root| {
        let mut table = root.init_call().init_params().init_cap_table(3);
        table.reborrow().get(0).set_sender_promise(5);
        table.reborrow().get(1).set_sender_hosted(6);
    });
    assert_eq!(named, Fate::Taken(2));
    let resolve = |tables: &mut Tables, to: fn(cap_descriptor::Builder<'_>)| {
        comes(tables, |root| {
            let mut resolve = root.init_resolve();
            resolve.set_promise_id(5);
            to(resolve.init_cap());
        })
    };
    assert_eq!(resolve(&mut tables, |mut cap| cap.set_sender_promise(5)), Fate::NotFollowed);
    assert_eq!(resolve(&mut tables, |mut cap| cap.set_sender_hosted(5)), Fate::NotFollowed);
    assert_eq!(resolve(&mut tables, |mut cap| cap.set_sender_hosted(6)), Fate::Taken(1));
    assert_eq!(resolve(&mut tables, |mut cap| cap.set_receiver_hosted(5)), Fate::Taken(1));
    // It is let go of, and its number stands for another.
    goes(&mut tables, |root| root.init_release().set_id(5), 0);
    assert_eq!(resolve(&mut tables, |mut cap| cap.set_sender_hosted(5)), Fate::Taken(1));
    assert!(tables.promises.is_empty());
}

#[test]
fn a_tower_of_answers_to_come_has_a_height() {
    let mut tables = Tables::default();
    call(&mut tables, 0, None);
    for question in 1..64 {
        assert_eq!(call(&mut tables, question, Some(question - 1)), Fate::Taken(0));
    }
    assert_eq!(call(&mut tables, 64, Some(63)), Fate::Deep);
    // As an argument it is as deep, and what comes to stand on it without telling doesn't.
    let named = |tables: &mut Tables, answer: u32| {
        comes(tables, |root| {
            let mut call = root.init_call();
            call.set_question_id(100);
            call.reborrow().init_target().set_imported_cap(0);
            call.init_params().init_cap_table(1).get(0).init_receiver_answer().set_question_id(answer);
        })
    };
    assert_eq!(named(&mut tables, 63), Fate::Deep);
    assert_eq!(named(&mut tables, 62), Fate::Taken(1));
    let resolved = |tables: &mut Tables| {
        comes(tables, |root| {
            let mut resolve = root.init_resolve();
            resolve.set_promise_id(5);
            resolve.init_cap().init_receiver_answer().set_question_id(3);
        })
    };
    assert_eq!(resolved(&mut tables), Fate::NotFollowed);
    // One that has come is nothing to stand on.
    goes(&mut tables, |root| root.init_return().set_answer_id(63), 0);
    assert_eq!(call(&mut tables, 64, Some(63)), Fate::Taken(0));
    goes(&mut tables, |root| root.init_return().set_answer_id(3), 0);
    assert_eq!(resolved(&mut tables), Fate::Taken(1));
}

#[test]
fn what_is_not_done_is_said() {
    let mut tables = Tables::default();
    let kept = comes(&mut tables, |root| root.init_call().get_send_results_to().set_yourself(()));
    assert!(matches!(kept, Fate::Refused(_)), "{kept:?}");
    let crowd = comes(&mut tables, |root| {
        root.init_call().init_params().init_cap_table(NAMED as u32 + 1);
    });
    assert_eq!(crowd, Fate::Over);
}
