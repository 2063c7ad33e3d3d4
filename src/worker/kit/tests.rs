//! The way of a vCon through links that halt, go over, fail and panic.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;

use crossbeam_channel::bounded;

use super::*;

type Script = fn(&mut Vcon, &mut Context<'_>) -> Result<Next, LinkError>;

/// A link that does what it was made to do.
struct Scripted(Script);

impl Link for Scripted {
    fn run(&mut self, vcon: &mut Vcon, context: &mut Context<'_>) -> Result<Next, LinkError> {
        self.0(vcon, context)
    }
}

const OTHER: &str = "05cec3d4-0561-4010-9fb8-23cc7edef146";

fn parse(id: VconId) -> Vcon {
    Vcon::parse(id, "{}".to_owned()).unwrap()
}

/// Runs a chain of the link `first` and one that tags; answers the way and the vCon at its end.
fn walk(first: Script, drained: bool) -> (Result<Way, Ending>, Journey) {
    let text = "links: {first: {module: links.tag, options: {tags: [x]}}, \
                second: {module: links.tag, options: {tags: [second]}}}\n\
                chains: {main: {links: [first, second], ingress_lists: [default]}}\n";
    let config = Config::parse(text, Path::new("config.yml")).unwrap();
    let settings = Settings::from_lookup(&|_| None).unwrap();
    let mut kit = Kit::open(Arc::new(config), Arc::default(), Meters::default());
    kit.links
        .insert("first".to_owned(), Box::new(Scripted(first)));
    let (hold, drain) = bounded(0);
    if drained {
        drop(hold);
    }
    let chain = kit.config().chains[0].clone();
    let mut journey = Journey {
        expire: Some(5),
        ..Journey::of(parse(VconId::random()))
    };
    let mut errands = |_: &mut Kit, journey: &mut Journey, errand: Errand<'_>| {
        if let Errand::GoOver(id) = errand {
            journey.vcon = parse(id.clone());
        }
        Ok(())
    };
    let turn = Turn::idle(&drain, None);
    let way = kit.links(&chain, &mut journey, &settings, &turn, &mut errands);
    (way, journey)
}

#[test]
fn the_rest_of_the_chain_works_on_the_vcon_a_link_went_over_to() {
    let (way, mut journey) = walk(|_, _| Ok(Next::Switch(OTHER.parse().unwrap())), false);
    assert_eq!(way, Ok(Way::GoesOn));
    assert_eq!(journey.vcon.id().as_str(), OTHER);
    assert!(journey.vcon.to_json().contains("second:second"));
}

#[test]
fn a_halt_ends_the_chain_and_keeps_what_links_asked_for() {
    let (way, journey) = walk(|_, _| Ok(Next::Halt), false);
    assert_eq!(way, Ok(Way::Ends));
    assert_eq!(
        (journey.vcon.is_changed(), journey.expire),
        (false, Some(5))
    );
}

#[test]
fn a_link_that_panics_is_a_fault_that_names_it() {
    let (way, _) = walk(|_, _| panic!("no good"), false);
    let Err(Ending::Failed(fault)) = way else {
        panic!("{way:?}")
    };
    assert_eq!((fault.stage.as_str(), fault.attempts), ("link first", 1));
    assert_eq!(fault.error, "it panicked: no good");
}

#[test]
fn a_link_whose_server_is_away_gives_up_when_the_worker_drains() {
    let away: Script = |_, _| Err(Failure::transient("connection refused").into());
    assert_eq!(walk(away, true).0, Err(Ending::Interrupted));
}

/// The routes at the end of a journey, as `list` or, for the vCon that was left, `list of another`.
fn routes(journey: &Journey) -> Vec<String> {
    let of = |route: &Route| {
        let is_ours = route.id == *journey.vcon.id();
        format!("{}{}", route.list, if is_ours { "" } else { " of another" })
    };
    journey.routes.iter().map(of).collect()
}

fn route_to(context: &mut Context<'_>, lists: &[&str]) {
    let lists = lists.iter().map(|list| list.parse().unwrap());
    context.routes.extend(lists);
}

#[test]
fn each_list_is_a_route_once_also_where_the_chain_ends_or_announces_there() {
    let (way, mut journey) = walk(
        |_, context| {
            route_to(context, &["a", "b", "a"]);
            Ok(Next::Halt)
        },
        false,
    );
    assert_eq!(
        (way, routes(&journey)),
        (Ok(Way::Ends), vec!["a".into(), "b".into()])
    );
    journey.announce_once(&["a".parse().unwrap(), "c".parse().unwrap()]);
    assert_eq!(routes(&journey), ["b"]);
}

#[test]
fn the_routes_of_a_vcon_that_was_left_are_still_its_own() {
    let (_, mut journey) = walk(
        |_, context| {
            route_to(context, &["a"]);
            Ok(Next::Switch(OTHER.parse().unwrap()))
        },
        false,
    );
    assert_eq!(routes(&journey), ["a of another"]);
    journey.announce_once(&["a".parse().unwrap()]);
    assert_eq!(routes(&journey), ["a of another"]);
}

#[test]
fn a_link_that_failed_has_no_routes() {
    let (_, journey) = walk(
        |_, context| {
            route_to(context, &["a"]);
            Err(Failure::permanent("no").into())
        },
        false,
    );
    assert_eq!(routes(&journey), [""; 0]);
}

#[test]
fn the_longest_call_of_a_chain_is_that_of_its_slowest_link_or_storage() {
    let text = "links: {tag: {module: links.tag, options: {tags: [x]}}, \
                wait: {module: links.delay, options: {seconds: 600}}, \
                hook: {module: links.webhook, options: {webhook-urls: ['http://h', 'http://i'], timeout: 7}}, \
                run: {module: links.exec, options: {command: [cat], timeout: 20}}}\n\
                storages: {s3: {module: storage.webhook, options: {webhook-urls: ['http://h'], timeout: 15}}}\n\
                chains: {none: {links: [tag, wait], ingress_lists: [a]}, \
                hook: {links: [tag, hook], ingress_lists: [b]}, \
                stored: {links: [hook], storages: [s3], ingress_lists: [c]}, \
                all: {links: [run, hook], storages: [s3], ingress_lists: [d]}}\n";
    let config = Config::parse(text, Path::new("config.yml")).unwrap();
    let kit = Kit::open(Arc::new(config), Arc::default(), Meters::default());
    for (name, seconds) in [("none", 0), ("hook", 14), ("stored", 15), ("all", 20)] {
        let chain = kit.config().chains.iter().find(|chain| chain.name == name);
        let longest = kit.longest_call(chain.unwrap());
        assert_eq!(longest, Duration::from_secs(seconds), "{name}");
    }
}
