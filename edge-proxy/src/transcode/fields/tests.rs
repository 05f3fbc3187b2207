use proptest::prelude::*;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, Value};

use super::Field;

/// A message with a field of every kind, under its own name.
fn everything() -> MessageDescriptor {
    use prost_reflect::prost_types::{
        DescriptorProto, EnumDescriptorProto, EnumValueDescriptorProto, FieldDescriptorProto,
        FileDescriptorProto, FileDescriptorSet,
        field_descriptor_proto::{Label, Type},
    };
    let kinds = [
        Type::Double,
        Type::Float,
        Type::Int64,
        Type::Uint64,
        Type::Int32,
        Type::Fixed64,
        Type::Fixed32,
        Type::Bool,
        Type::String,
        Type::Bytes,
        Type::Uint32,
        Type::Sfixed32,
        Type::Sfixed64,
        Type::Sint32,
        Type::Sint64,
    ];
    let field =
        |name: &str, number: i32, kind: Type, label: Label, type_name: Option<&str>| FieldDescriptorProto {
            name: Some(name.to_owned()),
            number: Some(number),
            r#type: Some(kind.into()),
            label: Some(label.into()),
            type_name: type_name.map(str::to_owned),
            ..FieldDescriptorProto::default()
        };
    let mut fields: Vec<_> = kinds
        .iter()
        .zip(1..)
        .map(|(kind, number)| {
            let name = kind.as_str_name().strip_prefix("TYPE_").unwrap().to_lowercase();
            field(&name, number, *kind, Label::Optional, None)
        })
        .collect();
    fields.extend([
        field("many_words", 20, Type::String, Label::Repeated, None),
        field("inner", 21, Type::Message, Label::Optional, Some(".t.Everything")),
        field("inners", 22, Type::Message, Label::Repeated, Some(".t.Everything")),
        field("colour", 23, Type::Enum, Label::Optional, Some(".t.Colour")),
        field("at", 24, Type::Message, Label::Optional, Some(".google.protobuf.Timestamp")),
        field("wait", 25, Type::Message, Label::Optional, Some(".google.protobuf.Duration")),
        field("mask", 26, Type::Message, Label::Optional, Some(".google.protobuf.FieldMask")),
        field("maybe", 27, Type::Message, Label::Optional, Some(".google.protobuf.Int32Value")),
    ]);
    let value = |name: &str, number| EnumValueDescriptorProto {
        name: Some(name.to_owned()),
        number: Some(number),
        ..EnumValueDescriptorProto::default()
    };
    let mut pool = DescriptorPool::global();
    pool.add_file_descriptor_set(FileDescriptorSet {
        file: vec![FileDescriptorProto {
            name: Some("t.proto".to_owned()),
            package: Some("t".to_owned()),
            syntax: Some("proto3".to_owned()),
            dependency: ["timestamp", "duration", "field_mask", "wrappers"]
                .map(|name| format!("google/protobuf/{name}.proto"))
                .to_vec(),
            message_type: vec![DescriptorProto {
                name: Some("Everything".to_owned()),
                field: fields,
                ..DescriptorProto::default()
            }],
            enum_type: vec![EnumDescriptorProto {
                name: Some("Colour".to_owned()),
                value: vec![value("NONE", 0), value("RED", 1), value("MINUS", -1)],
                ..EnumDescriptorProto::default()
            }],
            ..FileDescriptorProto::default()
        }],
    })
    .unwrap();
    pool.get_message_by_name("t.Everything").unwrap()
}

fn set(values: &[(&str, &str)]) -> Result<DynamicMessage, String> {
    let message = everything();
    let mut bytes = Vec::new();
    for (name, value) in values {
        Field::resolve(&message, name).ok_or("unknown")?.encode(value, &mut bytes)?;
    }
    Ok(DynamicMessage::decode(message, bytes.as_slice()).unwrap())
}

fn get(name: &str, text: &str) -> Value {
    at(&set(&[(name, text)]).unwrap(), name)
}

fn at(message: &DynamicMessage, path: &str) -> Value {
    let (name, rest) = path.split_once('.').unwrap_or((path, ""));
    let value = message.get_field_by_name(name).unwrap().into_owned();
    if rest.is_empty() { value } else { at(value.as_message().unwrap(), rest) }
}

#[test]
fn nested_repeated_and_special_fields() {
    let message = set(&[
        ("manyWords", "a"),
        ("inner.int32", "1"),
        ("many_words", "b"),
        ("inner.inner.string", "deep"),
        ("inner.manyWords", "c"),
        ("colour", "RED"),
        ("at", "2026-08-22T12:00:00.5+02:00"),
        ("wait", "-1.5s"),
        ("mask", "displayName,inner.manyWords"),
        ("maybe", "0"),
    ])
    .unwrap();
    let texts =
        |texts: &[&str]| Value::List(texts.iter().map(|text| Value::String((*text).into())).collect());
    assert_eq!(at(&message, "many_words"), texts(&["a", "b"]));
    assert_eq!(at(&message, "inner.int32"), Value::I32(1));
    assert_eq!(at(&message, "inner.inner.string"), Value::String("deep".into()));
    assert_eq!(at(&message, "inner.many_words"), texts(&["c"]));
    assert_eq!(at(&message, "colour"), Value::EnumNumber(1));
    assert_eq!(at(&message, "at.seconds"), Value::I64(1_787_392_800));
    assert_eq!(at(&message, "at.nanos"), Value::I32(500_000_000));
    assert_eq!(at(&message, "wait.seconds"), Value::I64(-1));
    assert_eq!(at(&message, "wait.nanos"), Value::I32(-500_000_000));
    assert_eq!(at(&message, "mask.paths"), texts(&["display_name", "inner.many_words"]));
    assert!(message.has_field_by_name("maybe") && at(&message, "maybe.value") == Value::I32(0));
    assert_eq!(get("colour", "-1"), Value::EnumNumber(-1));
    assert_eq!(get("bytes", "_-8"), Value::Bytes(vec![0xff, 0xef].into()));
    assert_eq!(get("bytes", "/+8="), Value::Bytes(vec![0xff, 0xef].into()));
}

#[test]
fn what_text_cannot_set_is_no_field() {
    let message = everything();
    for bad in
        ["", "nothing", "inner", "inners.int32", "string.x", "inner.", ".inner", "inner..int32", "at.seconds"]
    {
        let settable = Field::resolve(&message, bad).is_some();
        assert_eq!(settable, bad == "at.seconds", "{bad}");
    }
}

#[test]
fn wrong_values_are_refused() {
    for (name, value) in [
        ("int32", "2147483648"),
        ("int32", "1.0"),
        ("int32", ""),
        ("int32", " 1"),
        ("uint32", "-1"),
        ("uint64", "18446744073709551616"),
        ("bool", "yes"),
        ("bool", "TRUE"),
        ("double", "ten"),
        ("bytes", "!"),
        ("colour", "BLUE"),
        ("colour", "7"),
        ("at", "yesterday"),
        ("wait", "1"),
        ("wait", "1.1234567890s"),
        ("wait", "--1s"),
        ("wait", "999999999999999s"),
        ("maybe", "x"),
    ] {
        assert!(set(&[(name, value)]).is_err(), "{name}={value}");
    }
}

proptest! {
    #[test]
    fn numbers_and_texts_come_back(
        (a, b, c, d) in any::<(i32, i64, u32, u64)>(),
        (f, g) in any::<(f32, f64)>(),
        text in ".{0,40}",
    ) {
        for name in ["int32", "sint32", "sfixed32"] {
            prop_assert_eq!(get(name, &a.to_string()), Value::I32(a));
        }
        for name in ["int64", "sint64", "sfixed64"] {
            prop_assert_eq!(get(name, &b.to_string()), Value::I64(b));
        }
        for name in ["uint32", "fixed32"] {
            prop_assert_eq!(get(name, &c.to_string()), Value::U32(c));
        }
        for name in ["uint64", "fixed64"] {
            prop_assert_eq!(get(name, &d.to_string()), Value::U64(d));
        }
        prop_assert_eq!(get("float", &f.to_string()), Value::F32(f));
        prop_assert_eq!(get("double", &g.to_string()), Value::F64(g));
        prop_assert_eq!(get("string", &text), Value::String(text));
    }

    /// Whatever text comes: either it is refused, or the message can be read.
    #[test]
    fn any_text_is_safe(name in "[a-zA-Z0-9_.]{0,12}", value in ".{0,24}") {
        let _ = set(&[(&name, &value)]);
        for name in ["int32", "bytes", "at", "wait", "mask", "colour", "inner.inner.bool", "maybe"] {
            let _ = set(&[(name, &value)]);
        }
    }
}
