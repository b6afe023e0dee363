//! The part of JSON Schema that the OpenAPI document uses, and stricter: a member that no schema names is an error, so
//! that no response can have an undocumented one. A keyword that is not implemented here is an error too.

use serde_json::Value;

/// Why a value does not match the schema.
pub(crate) fn check(document: &Value, schema: &Value, value: &Value) -> Result<(), String> {
    if let Some(reference) = schema["$ref"].as_str() {
        let target = document.pointer(reference.trim_start_matches('#')).expect("a reference leads somewhere");
        return check(document, target, value).map_err(|why| format!("{reference}: {why}"));
    }
    for (keyword, keyword_value) in schema.as_object().expect("a schema is an object") {
        match keyword.as_str() {
            "description" | "minimum" | "maximum" => {}
            "type" => is_of(keyword_value, value)?,
            "enum" => one_of(keyword_value, value)?,
            "format" => is_time(keyword_value, value)?,
            "required" => has_all(keyword_value, value)?,
            "properties" => members(document, keyword_value, value)?,
            "items" => {
                value.as_array().into_iter().flatten().try_for_each(|item| check(document, keyword_value, item))?
            }
            "oneOf" => {
                let matching =
                    keyword_value.as_array().unwrap().iter().filter(|one| check(document, one, value).is_ok()).count();
                if matching != 1 {
                    return Err(format!("{matching} of the schemas fit {value}"));
                }
            }
            other => panic!("the check doesn't know {other}"),
        }
    }
    Ok(())
}

fn is_of(keyword_value: &Value, value: &Value) -> Result<(), String> {
    let types: Vec<&str> = match keyword_value {
        Value::String(one) => vec![one],
        several => several.as_array().unwrap().iter().map(|one| one.as_str().unwrap()).collect(),
    };
    let actual = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_i64() || number.is_u64() => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    if types.contains(&actual) { Ok(()) } else { Err(format!("{value} is {actual}, not {keyword_value}")) }
}

fn one_of(keyword_value: &Value, value: &Value) -> Result<(), String> {
    let is_listed = value.is_null() || keyword_value.as_array().unwrap().contains(value);
    if is_listed { Ok(()) } else { Err(format!("{value} is none of {keyword_value}")) }
}

fn is_time(keyword_value: &Value, value: &Value) -> Result<(), String> {
    assert_eq!(keyword_value, "date-time");
    let is_valid = value.as_str().is_none_or(|text| text.ends_with('Z') && text.parse::<jiff::Timestamp>().is_ok());
    if is_valid { Ok(()) } else { Err(format!("{value} is no time in UTC")) }
}

fn has_all(keyword_value: &Value, value: &Value) -> Result<(), String> {
    let mut names = keyword_value.as_array().unwrap().iter().map(|name| name.as_str().unwrap());
    let missing = names.find(|name| value.get(name).is_none());
    missing.map_or(Ok(()), |name| Err(format!("{value} has no {name}")))
}

fn members(document: &Value, keyword_value: &Value, value: &Value) -> Result<(), String> {
    for (name, member) in value.as_object().into_iter().flatten() {
        let Some(schema) = keyword_value.get(name) else { return Err(format!("{name} is not named")) };
        check(document, schema, member).map_err(|why| format!("{name}: {why}"))?;
    }
    Ok(())
}

/// Every `$ref` in the document.
pub(crate) fn references(value: &Value) -> Vec<String> {
    match value {
        Value::Array(items) => items.iter().flat_map(references).collect(),
        Value::Object(members) => {
            let own = members.get("$ref").and_then(Value::as_str).map(str::to_owned);
            own.into_iter().chain(members.values().flat_map(references)).collect()
        }
        _ => Vec::new(),
    }
}
