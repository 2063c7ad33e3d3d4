//! `/readyz`: whether this daemon would take on work now.

use crate::scoreboard::Phase;
use crate::view::Hold;

/// Judges the daemon: a line for each thing that it waits for.
pub(super) fn judge(
    phase: Option<Phase>,
    holds: &[Hold],
    redis: Result<(), &str>,
    shows_itself: bool,
) -> Result<String, Vec<String>> {
    let mut waits = Vec::new();
    match phase {
        // Workers are replaced one by one: all are at work.
        Some(Phase::Running | Phase::Reloading) => {}
        Some(phase) => waits.push(format!("the daemon is {phase}")),
        None => waits.push("the daemon is in no known phase".to_owned()),
    }
    match redis {
        Err(why) => waits.push(why.to_owned()),
        Ok(()) if !shows_itself => waits.push(
            "Redis answers, but this instance cannot show there that it is alive: the log has why"
                .to_owned(),
        ),
        Ok(()) => {}
    }
    waits.extend(holds.iter().map(|hold| {
        let chains = hold.chains.join(", ");
        format!("{} is unavailable: chains on hold: {chains}", hold.stage)
    }));
    if waits.is_empty() {
        Ok("ready".to_owned())
    } else {
        Err(waits)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn it_is_ready_when_it_waits_for_nothing() {
        for phase in [Phase::Running, Phase::Reloading] {
            assert_eq!(judge(Some(phase), &[], Ok(()), true).unwrap(), "ready");
        }
    }

    #[test]
    fn everything_it_waits_for_is_told() {
        let hold = Hold {
            stage: "storage pg".to_owned(),
            chains: vec!["main".to_owned(), "spare".to_owned()],
            workers: vec![1],
            seconds: 3,
        };
        let waits = judge(Some(Phase::Starting), &[hold], Err("Redis is away"), true);
        let expected = [
            "the daemon is starting",
            "Redis is away",
            "storage pg is unavailable: chains on hold: main, spare",
        ];
        assert_eq!(waits.unwrap_err(), expected);
        let waits = judge(Some(Phase::Running), &[], Ok(()), false).unwrap_err();
        assert!(waits[0].contains("cannot show there"), "{waits:?}");
        assert!(judge(Some(Phase::Stopping), &[], Ok(()), true).is_err());
        assert!(judge(None, &[], Ok(()), true).is_err());
    }
}
