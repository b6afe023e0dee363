//! Where an item is, from its OpenActive data: `location.geo` or `geo`, else its parent's.

use serde_json::Value;

/// Objects within objects are followed this far up.
const PARENTS: usize = 4;
/// What an occurrence belongs to: the place is often told only there (Modelling Opportunity Data, `superEvent`,
/// `facilityUse`).
const UPWARDS: [&str; 2] = ["superEvent", "facilityUse"];

/// Latitude and longitude in degrees; nothing where there are none, or they lie outside the globe.
pub(super) fn of(item: &Value) -> Option<(f64, f64)> {
    at_most(item, PARENTS)
}

fn at_most(item: &Value, parents: usize) -> Option<(f64, f64)> {
    let here = || each(item.get("location")?).find_map(|location| point(location.get("geo")?));
    let above = || {
        let parent = UPWARDS.iter().filter_map(|name| item.get(name)).flat_map(each);
        parent.into_iter().find_map(|parent| at_most(parent, parents.checked_sub(1)?))
    };
    here().or_else(|| point(item.get("geo")?)).or_else(above)
}

fn each(value: &Value) -> impl Iterator<Item = &Value> {
    let (one, many) = match value {
        Value::Array(values) => (None, values.as_slice()),
        one => (Some(one), [].as_slice()),
    };
    one.into_iter().chain(many)
}

fn point(geo: &Value) -> Option<(f64, f64)> {
    let (latitude, longitude) = (degrees(geo.get("latitude")?)?, degrees(geo.get("longitude")?)?);
    let on_the_globe = latitude.abs() <= 90.0 && longitude.abs() <= 180.0;
    on_the_globe.then_some((latitude, longitude))
}

/// A number, or one that was put in quotes.
fn degrees(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
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
            assert_eq!(of(&item), Some((51.5, -0.1)), "{item}");
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
            assert_eq!(of(&json!({ "geo": geo })), None, "{geo}");
        }
        assert_eq!(of(&json!({"superEvent": "https://acme.example/series/1"})), None);
    }
}
