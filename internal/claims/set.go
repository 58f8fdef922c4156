package claims

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/caddyserver/caddy/v2"

	"github.com/viewersession/caddy-viewer-session/internal/dws"
)

// set is a compiled set of further claims.
type set struct {
	fixed     string // all of them as JSON members, if none holds a placeholder
	templates []claimTemplate
}

type claimTemplate struct {
	name  string
	value any // decoded JSON; strings may hold placeholders
}

func newSet(claims map[string]json.RawMessage) (set, error) {
	var s set
	static := true
	for _, name := range slices.Sorted(maps.Keys(claims)) {
		value, err := dws.DecodeJSON(claims[name])
		if err != nil {
			return set{}, fmt.Errorf("claim %q: %w", name, err)
		}
		for _, text := range StringsIn(value, nil) {
			static = static && !HasPlaceholder(text)
		}
		s.templates = append(s.templates, claimTemplate{name, value})
	}
	if !static {
		return s, nil
	}
	// Without placeholders the replacer only removes the escapes in front of braces.
	fixed, err := s.resolve(caddy.NewEmptyReplacer())
	return set{fixed: fixed}, err
}

func (s *set) static() bool { return len(s.templates) == 0 }

func (s *set) resolve(repl *caddy.Replacer) (string, error) {
	if s.static() {
		return s.fixed, nil
	}
	var b bytes.Buffer
	for _, claim := range s.templates {
		value, err := replaceStrings(claim.value, repl)
		if err != nil {
			return "", fmt.Errorf("claim %q: %w", claim.name, err)
		}
		b.WriteByte(',')
		dws.WriteJSON(&b, claim.name)
		b.WriteByte(':')
		dws.WriteJSON(&b, value)
	}
	return b.String(), nil
}

// replaceStrings returns value with the placeholders inside its strings
// replaced; names of members are left alone. A placeholder that is unknown or
// empty is an error: a claim must not quietly say less than it was meant to.
func replaceStrings(value any, repl *caddy.Replacer) (any, error) {
	switch v := value.(type) {
	case string:
		return replaceText(v, repl)
	case []any:
		replaced := make([]any, len(v))
		for i, item := range v {
			var err error
			if replaced[i], err = replaceStrings(item, repl); err != nil {
				return nil, err
			}
		}
		return replaced, nil
	case map[string]any:
		replaced := make(map[string]any, len(v))
		for name, item := range v {
			var err error
			if replaced[name], err = replaceStrings(item, repl); err != nil {
				return nil, err
			}
		}
		return replaced, nil
	default:
		return value, nil
	}
}

// StringsIn appends every string inside a decoded JSON value.
func StringsIn(value any, found []string) []string {
	switch v := value.(type) {
	case string:
		found = append(found, v)
	case []any:
		for _, item := range v {
			found = StringsIn(item, found)
		}
	case map[string]any:
		for _, item := range v {
			found = StringsIn(item, found)
		}
	}
	return found
}
