//! Decides which members take part in the next run, and when the cluster changes for it. Has no I/O and no clock.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// The time after its start within which the loss of a member counts as a failed start.
const YOUNG: Duration = Duration::from_secs(60);

/// The time for which a member that was lost twice soon after a start takes no part; each further time is twice as long.
const MIN_REST: Duration = Duration::from_secs(10);

/// The longest such time.
const MAX_REST: Duration = Duration::from_secs(600);

/// The decisions of the first process. All times are since its start.
pub struct Membership {
    /// The time for which a change has to last.
    settle: Duration,
    /// The change that is not settled yet, and the time at which it began.
    change: Option<(Vec<String>, Duration)>,
    /// The members that were lost soon after a start.
    lost: BTreeMap<String, Losses>,
}

/// The losses of a member.
#[derive(Default)]
struct Losses {
    count: u32,
    /// The time until which it takes no part.
    rests_until: Duration,
}

impl Membership {
    /// Returns the decisions with this time for which a change has to last.
    pub fn new(settle: Duration) -> Membership {
        Membership { settle, change: None, lost: BTreeMap::new() }
    }

    /// Returns the members that can take part: this process, and the listed ones that are present and do not rest, at most
    /// `max` in all.
    pub fn able(
        &self,
        now: Duration,
        own: &str,
        listed: &[String],
        present: &BTreeSet<String>,
        max: usize,
    ) -> Vec<String> {
        let others = listed
            .iter()
            .filter(|&member| member != own && present.contains(member) && !self.rests(now, member));
        std::iter::once(own.to_owned()).chain(others.cloned()).take(max.max(1)).collect()
    }

    /// Returns true if a member rests.
    pub fn rests(&self, now: Duration, member: &str) -> bool {
        self.lost.get(member).is_some_and(|lost| now < lost.rests_until)
    }

    /// Returns true once the members that can take part differ from the current ones, and have been the same for as long as
    /// a change has to last.
    pub fn has_changed(&mut self, now: Duration, current: &[String], able: &[String]) -> bool {
        if current == able {
            self.change = None;
            return false;
        }
        match &self.change {
            Some((change, since)) if change == able => now.saturating_sub(*since) >= self.settle,
            _ => {
                self.change = Some((able.to_vec(), now));
                self.settle.is_zero()
            }
        }
    }

    /// Takes the loss of a member that ran for `ran`. A member that is lost again and again, because it is refused or crashes,
    /// must not stop the others each time.
    pub fn lost(&mut self, now: Duration, member: &str, ran: Duration) {
        if ran >= YOUNG {
            self.lost.remove(member);
            return;
        }
        let losses = self.lost.entry(member.to_owned()).or_default();
        let rest = match losses.count {
            0 => Duration::ZERO,
            count => MIN_REST.saturating_mul(1 << (count - 1).min(16)).min(MAX_REST),
        };
        losses.count += 1;
        losses.rests_until = now + rest;
        if !rest.is_zero() {
            tracing::warn!(member, ?rest, "lost soon after its start again: it takes no part for this time");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_change_counts_once_it_has_lasted() {
        let mut membership = Membership::new(s(3));
        let (one, two, three) = (members("a"), members("a b"), members("a b c"));
        assert!(!membership.has_changed(s(0), &one, &one));
        assert!(!membership.has_changed(s(10), &one, &two) && !membership.has_changed(s(12), &one, &two));
        assert!(!membership.has_changed(s(13), &one, &three), "another change begins anew");
        assert!(!membership.has_changed(s(15), &one, &one), "and may be taken back");
        assert!(!membership.has_changed(s(15), &one, &three) && !membership.has_changed(s(17), &one, &three));
        assert!(membership.has_changed(s(18), &one, &three));
        assert!(Membership::new(s(0)).has_changed(s(0), &two, &one));
    }

    #[test]
    fn only_listed_and_present_members_take_part() {
        let membership = Membership::new(s(3));
        let present = members("c b x").into_iter().collect();
        let able = |own, listed, max| membership.able(s(0), own, &members(listed), &present, max);
        assert_eq!(able("a", "a b c d", 9), members("a b c"), "in the order of the list");
        assert_eq!(able("b", "a b c", 9), members("b c"), "whoever decides is first");
        assert_eq!(able("a", "c", 9), members("a c"));
        assert_eq!(able("a", "a b c", 2), members("a b"));
    }

    #[test]
    fn a_member_that_fails_again_and_again_rests() {
        let mut membership = Membership::new(s(3));
        membership.lost(s(100), "b", s(5));
        assert!(!membership.rests(s(100), "b"), "once is an accident");
        membership.lost(s(110), "b", s(5));
        assert!(
            membership.rests(s(119), "b") && !membership.rests(s(120), "b") && !membership.rests(s(110), "c")
        );
        membership.lost(s(130), "b", s(5));
        assert!(membership.rests(s(149), "b") && !membership.rests(s(150), "b"));
        for _ in 0..40 {
            membership.lost(s(200), "b", s(5));
        }
        assert!(membership.rests(s(799), "b") && !membership.rests(s(800), "b"));
        membership.lost(s(900), "b", s(60));
        membership.lost(s(901), "b", s(1));
        assert!(!membership.rests(s(901), "b"), "a run that lasted ends the sequence");
    }
}
