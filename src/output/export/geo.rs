//! An item's location, from its OpenActive data: `location.geo` or `geo`, else its parent's.

use crate::json;

/// How many parents are followed.
const MAX_PARENTS: usize = 4;
/// Properties that hold an occurrence's parent: the location is often given only there (Modelling Opportunity Data,
/// `superEvent`, `facilityUse`).
const PARENT_PROPERTIES: [&str; 2] = ["superEvent", "facilityUse"];

/// Latitude and longitude in degrees; none where the item has none, or they are out of range.
pub(super) fn of(item: &str) -> Option<(f64, f64)> {
    location_of(item, MAX_PARENTS)
}

fn location_of(item: &str, parents: usize) -> Option<(f64, f64)> {
    let location = json::member(item, "location");
    let own = location
        .and_then(|location| json::elements(location).find_map(|location| point(json::member(location, "geo")?)));
    let inherited = || {
        let parents = parents.checked_sub(1)?;
        let mut candidates =
            PARENT_PROPERTIES.iter().filter_map(|name| json::member(item, name)).flat_map(json::elements);
        candidates.find_map(|parent| location_of(parent, parents))
    };
    own.or_else(|| point(json::member(item, "geo")?)).or_else(inherited)
}

fn point(geo: &str) -> Option<(f64, f64)> {
    let (latitude, longitude) = (degrees(json::member(geo, "latitude")?)?, degrees(json::member(geo, "longitude")?)?);
    let in_range = latitude.abs() <= 90.0 && longitude.abs() <= 180.0;
    in_range.then_some((latitude, longitude))
}

/// A number, or one in quotes.
fn degrees(value: &str) -> Option<f64> {
    match json::unescape_strict(value) {
        Some(text) => text.trim().parse().ok(),
        None => value.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn places_are_found_where_publishers_put_them() {
        let geo = json!({"latitude": 51.5, "longitude": "-0.1"});
        for item in [
            json!({"location": {"geo": geo}}),
            json!({"geo": geo}),
            json!({"location": [{"name": "no geo"}, {"geo": geo}]}),
            json!({"superEvent": {"location": {"geo": geo}}}),
            json!({"location": "room 1", "superEvent": {"superEvent": {"location": {"geo": geo}}}}),
            json!({"facilityUse": {"location": {"geo": geo}}}),
        ] {
            assert_eq!(of(&item.to_string()), Some((51.5, -0.1)), "{item}");
        }
    }

    #[test]
    fn what_is_no_place_is_none() {
        for geo in [
            json!({"latitude": 51.5}),
            json!({"latitude": 91, "longitude": 0}),
            json!({"latitude": "north", "longitude": 0}),
            json!({"latitude": "NaN", "longitude": 0}),
            json!({"latitude": null, "longitude": null}),
            json!([51.5, 0.1]),
        ] {
            assert_eq!(of(&json!({ "geo": geo }).to_string()), None, "{geo}");
        }
        assert_eq!(of(&json!({"superEvent": "https://acme.example/series/1"}).to_string()), None);
    }
}
