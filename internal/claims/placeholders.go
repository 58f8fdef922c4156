package claims

import (
	"strings"

	"github.com/caddyserver/caddy/v2"
)

// PlaceholdersIn returns the names of the placeholders in s as Caddy's own
// replacer finds them.
func PlaceholdersIn(s string) []string {
	var names []string
	repl := caddy.NewEmptyReplacer()
	repl.Map(func(name string) (any, bool) {
		names = append(names, name)
		return "", true
	})
	repl.ReplaceAll(s, "")
	return names
}

// HasPlaceholder reports whether s has a placeholder.
func HasPlaceholder(s string) bool { return len(PlaceholdersIn(s)) > 0 }

// ClientControlled reports whether a client chooses the placeholder's value.
// The query is allowed where the value is an id, which clients choose anyway.
func ClientControlled(placeholder string, queryAllowed bool) bool {
	for _, prefix := range []string{
		"http.request.header.",
		"http.request.cookie.",
		"http.request.body",
	} {
		if strings.HasPrefix(placeholder, prefix) {
			return true
		}
	}
	if queryAllowed {
		return false
	}
	switch placeholder {
	case "http.request.uri", "http.request.uri_escaped", "http.request.orig_uri":
		return true // they end in the query
	}
	for _, prefix := range []string{
		"http.request.uri.query",
		"http.request.uri.prefixed_query",
		"http.request.orig_uri.query",
		"http.request.orig_uri.prefixed_query",
	} {
		if strings.HasPrefix(placeholder, prefix) {
			return true
		}
	}
	return false
}
