package dws

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// DecodeJSON reads exactly one JSON value and keeps numbers as they are written.
// An object that has two members of one name is an error: what reads it next
// would keep one of them.
func DecodeJSON(raw json.RawMessage) (any, error) {
	if err := json.Unmarshal(raw, new(json.RawMessage)); err != nil {
		return nil, fmt.Errorf("not JSON: %w", err)
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	return decodeValue(dec)
}

func decodeValue(dec *json.Decoder) (any, error) {
	token, err := dec.Token()
	if err != nil {
		return nil, err
	}
	switch token {
	case json.Delim('['):
		list := []any{}
		for dec.More() {
			item, err := decodeValue(dec)
			if err != nil {
				return nil, err
			}
			list = append(list, item)
		}
		_, err = dec.Token()
		return list, err
	case json.Delim('{'):
		object := make(map[string]any)
		for dec.More() {
			name, err := dec.Token()
			if err != nil {
				return nil, err
			}
			if _, ok := object[name.(string)]; ok {
				return nil, fmt.Errorf("the member %q is given twice", name)
			}
			if object[name.(string)], err = decodeValue(dec); err != nil {
				return nil, err
			}
		}
		_, err = dec.Token()
		return object, err
	default:
		return token, nil
	}
}

// stated reports whether a member of a JSON object is there, and not null.
func stated(raw json.RawMessage) bool { return len(raw) > 0 && string(raw) != "null" }

// stringMember returns a member of a JSON object if it is a string, or nothing.
func stringMember(object map[string]json.RawMessage, name string) string {
	var s string
	if json.Unmarshal(object[name], &s) != nil {
		return ""
	}
	return s
}
