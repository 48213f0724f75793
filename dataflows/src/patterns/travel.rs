//! Impossible travel: movement between two places faster than is possible.

use serde::{Deserialize, Serialize};

use super::{Description, Located};
use crate::anchor::Anchor;
use crate::{Event, EventTime, Pattern, prefetch};

/// A place on earth, in degrees.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize, Deserialize)]
pub struct Location {
    /// Latitude, −90 to 90.
    pub lat: f64,
    /// Longitude, −180 to 180.
    pub lon: f64,
}

/// Matches an event more than `km` kilometres from the previous located event of the key, if the speed between them is
/// above `kmh` kilometres per hour. Zero elapsed time counts as infinite speed. Every such event matches.
pub struct Travel<L, I> {
    km: f64,
    kmh: f64,
    location: L,
    name: I,
}

/// A match of [`Travel`].
#[derive(Clone, Debug, PartialEq, PartialOrd)]
pub struct Trip<N> {
    /// The name of the previous located event.
    pub from: N,
    /// The distance in kilometres.
    pub km: f64,
    /// The elapsed event time in seconds.
    pub seconds: f64,
    /// The speed in kilometres per hour; `None` if no time elapsed.
    pub kmh: Option<f64>,
}

/// A located event: its location, event time and name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sighting<N> {
    pub(super) location: Location,
    pub(super) time: EventTime,
    pub(super) name: N,
}

impl<L, I> Travel<L, I> {
    /// Creates the pattern, with thresholds of `km` kilometres and `kmh` kilometres per hour. `location` returns the
    /// location of an event, if it is known, and `name` the name by which a match identifies the event.
    pub fn beyond<E, N: ?Sized>(km: f64, kmh: f64, location: L, name: I) -> Travel<L, I>
    where
        L: Fn(&E) -> Option<Location>,
        I: Fn(&E) -> &N,
    {
        Travel { km, kmh, location, name }
    }
}

/// Names events by their [`Anchor`].
pub struct Anchored;

impl<L> Travel<L, Anchored> {
    /// Creates the pattern like [`beyond`](Travel::beyond), with anchors as the names of events.
    pub(crate) fn anchored(km: f64, kmh: f64, location: L) -> Travel<L, Anchored> {
        Travel { km, kmh, location, name: Anchored }
    }
}

impl<E: Event, L: Fn(&E) -> Option<Location> + 'static> Pattern<E> for Travel<L, Anchored> {
    type State = Option<Located>;
    type Undo = Option<Located>;
    type Match = Trip<Anchor>;

    fn step(&self, state: &mut Self::State, event: &E) -> (Option<Trip<Anchor>>, Self::Undo) {
        let Some(location) = (self.location)(event) else { return (None, None) };
        let found = state.as_ref().and_then(|before| {
            let trip = self.judge((before.location(), before.time()), (location, event.time()))?;
            Some(trip.from(before.anchor()))
        });
        (found, state.replace(Located::of(location, event)))
    }

    fn undo(&self, state: &mut Self::State, event: &E, undo: Self::Undo) {
        if (self.location)(event).is_some() {
            *state = undo;
        }
    }

    fn same(&self, one: &Self::State, other: &Self::State) -> bool {
        one == other
    }

    fn describe(&self, state: &Self::State, _watermark: EventTime) -> Option<Description> {
        Some(self.describe_last(state.as_ref().map(|last| (last.location(), last.time()))))
    }
}

impl<E, L, I, N> Pattern<E> for Travel<L, I>
where
    E: Event,
    L: Fn(&E) -> Option<Location> + 'static,
    I: Fn(&E) -> &N + 'static,
    N: ToOwned<Owned: Clone + PartialEq + 'static> + ?Sized + 'static,
{
    /// Boxed, so that keys without locations need one machine word.
    type State = Option<Box<Sighting<N::Owned>>>;
    type Undo = Option<Box<Sighting<N::Owned>>>;
    type Match = Trip<N::Owned>;

    fn step(&self, state: &mut Self::State, event: &E) -> (Option<Trip<N::Owned>>, Self::Undo) {
        let Some(location) = (self.location)(event) else { return (None, None) };
        let here = Sighting { location, time: event.time(), name: (self.name)(event).to_owned() };
        let found = state.as_deref().and_then(|before| {
            let trip = self.judge((before.location, before.time), (location, here.time))?;
            Some(trip.from(before.name.clone()))
        });
        (found, state.replace(Box::new(here)))
    }

    fn undo(&self, state: &mut Self::State, event: &E, undo: Self::Undo) {
        if (self.location)(event).is_some() {
            *state = undo;
        }
    }

    fn prefetch(&self, state: &Self::State, _event: &E) {
        if let Some(before) = state {
            prefetch(&**before);
        }
    }

    fn same(&self, one: &Self::State, other: &Self::State) -> bool {
        one == other
    }

    fn describe(&self, state: &Self::State, _watermark: EventTime) -> Option<Description> {
        Some(self.describe_last(state.as_deref().map(|sighting| (sighting.location, sighting.time))))
    }
}

impl<L, I> Travel<L, I> {
    fn describe_last(&self, last: Option<(Location, EventTime)>) -> Description {
        Description::Place { last, km: self.km, kmh: self.kmh }
    }

    /// Returns the trip from the place and time of one event to those of the next, if it matches.
    #[inline]
    fn judge(&self, before: (Location, EventTime), here: (Location, EventTime)) -> Option<Trip<()>> {
        let km = haversine_km(before.0, here.0);
        if km <= self.km {
            return None;
        }
        let seconds = here.1.0.saturating_sub(before.1.0) as f64 / 1000.0;
        let kmh = (seconds > 0.0).then(|| km / seconds * 3600.0);
        kmh.is_none_or(|kmh| kmh > self.kmh).then_some(Trip { from: (), km, seconds, kmh })
    }
}

impl Trip<()> {
    fn from<N>(self, from: N) -> Trip<N> {
        let Trip { km, seconds, kmh, .. } = self;
        Trip { from, km, seconds, kmh }
    }
}

/// Mean earth radius of the IUGG, in kilometres.
const EARTH_RADIUS_KM: f64 = 6371.0088;

/// Returns the great-circle distance in kilometres, by the haversine formula (R. W. Sinnott, "Virtues of the
/// Haversine", Sky and Telescope 68, 1984).
pub fn haversine_km(a: Location, b: Location) -> f64 {
    let (lat_a, lat_b) = (a.lat.to_radians(), b.lat.to_radians());
    let lat = ((lat_b - lat_a) / 2.0).sin();
    let lon = ((b.lon - a.lon).to_radians() / 2.0).sin();
    let h = lat * lat + lat_a.cos() * lat_b.cos() * lon * lon;
    2.0 * EARTH_RADIUS_KM * h.sqrt().min(1.0).asin()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Line;

    #[test]
    fn the_largest_elapsed_time_does_not_overflow() {
        let far = |event: &Line| Some(Location { lat: event.offset as f64, lon: 0.0 });
        let travel = Travel::beyond(50.0, 900.0, far, |event: &Line| &event.offset);
        let mut state = None;
        for (time, found) in [(i64::MIN + 1, false), (i64::MAX - 1, false), (i64::MAX - 1, true)] {
            let offset = if found { 80 } else { time.signum() * 40 };
            let event = Line::from(("ann", time, offset, "a"));
            assert_eq!(travel.step(&mut state, &event).0.is_some(), found);
        }
    }

    #[test]
    fn known_distances() {
        let place = |lat, lon| Location { lat, lon };
        let quarter = std::f64::consts::FRAC_PI_2 * EARTH_RADIUS_KM;
        for (a, b, km) in [
            (place(0.0, 0.0), place(0.0, 0.0), 0.0),
            (place(0.0, 0.0), place(0.0, 90.0), quarter),
            (place(-90.0, 0.0), place(90.0, 77.0), 2.0 * quarter),
            (place(0.0, 179.5), place(0.0, -179.5), quarter / 90.0),
            // Paris to London.
            (place(48.8566, 2.3522), place(51.5074, -0.1278), 343.557),
        ] {
            let got = haversine_km(a, b);
            assert!((got - km).abs() < 1e-3, "{a:?} {b:?}: {got} {km}");
        }
    }
}
