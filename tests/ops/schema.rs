//! As much of JSON Schema as the OpenAPI document uses, and stricter: a member that no schema names is an error, so that
//! what is answered can't outgrow what is written. A keyword that is not known here fails, too.

use serde_json::Value;

/// Why a value is not what the schema says.
pub(crate) fn check(document: &Value, schema: &Value, value: &Value) -> Result<(), String> {
    if let Some(reference) = schema["$ref"].as_str() {
        let target = document.pointer(reference.trim_start_matches('#')).expect("a reference leads somewhere");
        return check(document, target, value).map_err(|why| format!("{reference}: {why}"));
    }
    for (keyword, said) in schema.as_object().expect("a schema is an object") {
        match keyword.as_str() {
            "description" | "minimum" | "maximum" => {}
            "type" => is_of(said, value)?,
            "enum" => one_of(said, value)?,
            "format" => is_time(said, value)?,
            "required" => has_all(said, value)?,
            "properties" => members(document, said, value)?,
            "items" => value.as_array().into_iter().flatten().try_for_each(|item| check(document, said, item))?,
            "oneOf" => {
                let fitting = said.as_array().unwrap().iter().filter(|one| check(document, one, value).is_ok()).count();
                if fitting != 1 {
                    return Err(format!("{fitting} of the schemas fit {value}"));
                }
            }
            other => panic!("the check doesn't know {other}"),
        }
    }
    Ok(())
}

fn is_of(said: &Value, value: &Value) -> Result<(), String> {
    let named: Vec<&str> = match said {
        Value::String(one) => vec![one],
        several => several.as_array().unwrap().iter().map(|one| one.as_str().unwrap()).collect(),
    };
    let real = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_i64() || number.is_u64() => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    if named.contains(&real) { Ok(()) } else { Err(format!("{value} is {real}, not {said}")) }
}

fn one_of(said: &Value, value: &Value) -> Result<(), String> {
    let found = value.is_null() || said.as_array().unwrap().contains(value);
    if found { Ok(()) } else { Err(format!("{value} is none of {said}")) }
}

fn is_time(said: &Value, value: &Value) -> Result<(), String> {
    assert_eq!(said, "date-time");
    let well = value.as_str().is_none_or(|text| text.ends_with('Z') && text.parse::<jiff::Timestamp>().is_ok());
    if well { Ok(()) } else { Err(format!("{value} is no time in UTC")) }
}

fn has_all(said: &Value, value: &Value) -> Result<(), String> {
    let mut names = said.as_array().unwrap().iter().map(|name| name.as_str().unwrap());
    let missing = names.find(|name| value.get(name).is_none());
    missing.map_or(Ok(()), |name| Err(format!("{value} has no {name}")))
}

fn members(document: &Value, said: &Value, value: &Value) -> Result<(), String> {
    for (name, member) in value.as_object().into_iter().flatten() {
        let Some(schema) = said.get(name) else { return Err(format!("{name} is not named")) };
        check(document, schema, member).map_err(|why| format!("{name}: {why}"))?;
    }
    Ok(())
}

/// Every `$ref` in it.
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
