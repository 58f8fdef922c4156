package claims

import (
	"net/http"
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

// Use is what a placeholder's value is used for.
type Use uint8

// The uses, from the one that clients may influence most.
const (
	ForDocumentID Use = iota // clients choose documents anyway
	ForClaim
	ForIdentity // of users, and what they may do
)

// ClientControlled reports whether clients choose the placeholder's value, so
// that it must not be used so. Headers, cookies and the body are refused for
// everything, the query for claims, and any part of the address for identities.
func ClientControlled(placeholder string, use Use) bool {
	name, ok := strings.CutPrefix(placeholder, "http.request.")
	if !ok {
		// The document's id, and what a file matcher made of the path.
		return use >= ForIdentity && (strings.HasPrefix(placeholder, "http.viewer_session.") || strings.HasPrefix(placeholder, "http.matchers.file."))
	}
	name = strings.TrimPrefix(name, "orig_")
	switch {
	case strings.HasPrefix(name, "header."), strings.HasPrefix(name, "cookie."), strings.HasPrefix(name, "body"):
		return true
	case name == "uri", name == "uri_escaped", strings.HasPrefix(name, "uri.query"), strings.HasPrefix(name, "uri.prefixed_query"):
		return use >= ForClaim // the URI ends in the query
	case strings.HasPrefix(name, "uri"), strings.HasPrefix(name, "host"), name == "port", name == "tls.server_name":
		return use >= ForIdentity
	default:
		return false
	}
}

// Misspelled returns the name that a placeholder for a header of another
// server's answer should have, or nothing if it is right: Go spells header names
// in one way, and placeholders are case-sensitive.
func Misspelled(placeholder string) (right string) {
	const prefix = "http.reverse_proxy.header."
	header, ok := strings.CutPrefix(placeholder, prefix)
	if canonical := http.CanonicalHeaderKey(header); ok && canonical != header {
		return prefix + canonical
	}
	return ""
}
