package viewersession

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/caddyserver/caddy/v2"
)

// ask is what the API is asked for: everything that makes two tokens
// different but for the account, which belongs to the pool. It is resolved
// once per request; no placeholder is left in it.
type ask struct {
	documentID  string
	permissions []string // sorted, without repeats, never empty
	userID      string   // empty: no user_id is sent

	// claims and documentClaims hold further members of a JSON object, each
	// with a leading comma, or nothing.
	claims, documentClaims string

	varyBy []string // further parts of the cache key, not sent
	ttl    time.Duration

	// minRemaining decides when a cached token is renewed. It is no part of
	// the key: a token does not differ by how long it will be used.
	minRemaining time.Duration

	keyPart []byte // the key's part that is the same for every request, prepared when the config loads if there is one
}

// appendKey appends the cache key. Every field carries its length, so that no
// two different asks have the same key.
func (a *ask) appendKey(key []byte) []byte {
	key = appendField(key, a.documentID) // first, where documentOf finds it
	if a.keyPart != nil {
		key = append(key, a.keyPart...)
	} else {
		key = a.appendKeyPart(key)
	}
	key = appendField(key, a.userID)
	key = binary.AppendUvarint(key, uint64(len(a.varyBy)))
	for _, value := range a.varyBy {
		key = appendField(key, value)
	}
	return key
}

// documentOf returns the document's id in a key that appendKey made.
func documentOf(key string) string {
	length, n := binary.Uvarint([]byte(key[:min(len(key), binary.MaxVarintLen64)]))
	return key[n : n+int(length)] //nolint:gosec // it was an int
}

func (a *ask) appendKeyPart(key []byte) []byte {
	key = binary.AppendVarint(key, int64(a.ttl))
	key = appendField(key, a.claims)
	key = appendField(key, a.documentClaims)
	key = binary.AppendUvarint(key, uint64(len(a.permissions)))
	for _, permission := range a.permissions {
		key = appendField(key, permission)
	}
	return key
}

func appendField(key []byte, field string) []byte {
	return append(binary.AppendUvarint(key, uint64(len(field))), field...)
}

// bodyForm is how a request body names the permissions. The API's guides say
// document_permissions; those who have tried it say that it reads permissions,
// and takes a request without as one for all permissions.
type bodyForm uint8

const (
	bothNames      bodyForm = iota // the same list under both names
	documentedName                 // as documented, for an API that refuses the other
)

// members returns the names of the body's members that hold the permissions.
func (f bodyForm) members() []string {
	if f == documentedName {
		return permissionMembers[:1]
	}
	return permissionMembers[:]
}

// body is the request body for POST /viewer/sessions.
func (a *ask) body(exp int64, form bodyForm) []byte {
	var b bytes.Buffer
	b.WriteString(`{"allowed_documents":[{"document_id":`)
	writeJSON(&b, a.documentID)
	for _, name := range form.members() {
		fmt.Fprintf(&b, `,%q:`, name)
		writeJSON(&b, a.permissions)
	}
	b.WriteString(a.documentClaims)
	fmt.Fprintf(&b, `}],"exp":%d`, exp)
	if a.userID != "" {
		b.WriteString(`,"user_id":`)
		writeJSON(&b, a.userID)
	}
	b.WriteString(a.claims)
	b.WriteByte('}')
	return b.Bytes()
}

// writeJSON writes what cannot fail to marshal: strings, and what was JSON before.
func writeJSON(b *bytes.Buffer, value any) {
	enc := json.NewEncoder(b)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(value)
	b.Truncate(b.Len() - 1) // the encoder's newline
}

// askTemplate is the compiled form of TokenOptions.
type askTemplate struct {
	permissions []string
	userID      string
	varyBy      []string

	claims, documentClaims claimSet

	// static is what holds no placeholder, prepared when the config loads.
	static ask
}

// newAskTemplate compiles options, which must be complete and valid.
func newAskTemplate(o TokenOptions) (*askTemplate, error) {
	t := &askTemplate{
		permissions: o.Permissions,
		userID:      o.UserID,
		varyBy:      o.VaryBy,
		static: ask{
			ttl:          time.Duration(o.TTL),
			minRemaining: time.Duration(o.MinRemaining),
		},
	}
	var err error
	if t.claims, err = newClaimSet(o.Claims); err != nil {
		return nil, err
	}
	if t.documentClaims, err = newClaimSet(o.DocumentClaims); err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(t.permissions, hasPlaceholder) {
		t.static.permissions = splitPermissions(t.permissions)
		if t.claims.static() && t.documentClaims.static() {
			t.static.claims, t.static.documentClaims = t.claims.fixed, t.documentClaims.fixed
			t.static.keyPart = t.static.appendKeyPart(nil)
		}
	}
	return t, nil
}

// unresolved is what could not be filled in for a request.
type unresolved struct {
	user, permissions, claims *failure
}

// first returns the failure to answer with, if there is one.
func (u *unresolved) first() *failure { return cmp.Or(u.user, u.permissions, u.claims) }

// resolve fills in the request's values. Each template is replaced once and
// the outcome is never parsed again: text that came from a request must not be
// able to name {env.*} or {file.*}.
func (t *askTemplate) resolve(a *ask, repl *caddy.Replacer, documentID string) (missing unresolved) {
	*a = t.static
	a.documentID = documentID
	var err error
	if t.userID != "" {
		if a.userID, err = replaceText(t.userID, repl); err != nil {
			missing.user = &failure{reason: reasonNoUser, err: fmt.Errorf("user_id: %w", err)}
		}
	}
	if a.permissions == nil {
		replaced := make([]string, len(t.permissions))
		for i, permission := range t.permissions {
			replaced[i] = repl.ReplaceAll(permission, "")
		}
		if a.permissions, err = readPermissions(replaced); err != nil {
			missing.permissions = &failure{reason: reasonNoPermission, err: fmt.Errorf("permissions %s: %w", strings.Join(t.permissions, " "), err)}
		}
	}
	if a.keyPart == nil {
		if a.claims, err = t.claims.resolve(repl); err == nil {
			a.documentClaims, err = t.documentClaims.resolve(repl)
		}
		if err != nil {
			missing.claims = &failure{reason: reasonNoClaim, err: err}
		}
	}
	if len(t.varyBy) > 0 {
		// The templates are part of the key as well: the same value under
		// another name is another thing.
		a.varyBy = make([]string, 0, 2*len(t.varyBy))
		for _, template := range t.varyBy {
			a.varyBy = append(a.varyBy, template, repl.ReplaceAll(template, ""))
		}
	}
	return missing
}

// readPermissions splits values that are known only at run time.
func readPermissions(values []string) ([]string, error) {
	for _, value := range values {
		if !utf8.ValidString(value) {
			return nil, errors.New("not valid UTF-8")
		}
	}
	permissions := splitPermissions(values)
	if len(permissions) == 0 {
		return nil, errors.New("none left for this request")
	}
	return permissions, nil
}

// replaceText replaces the placeholders in s, once. One that is unknown or
// empty is an error, and so is text that JSON could not carry unchanged: two
// users must not become one by the bytes that an encoder replaces.
func replaceText(s string, repl *caddy.Replacer) (string, error) {
	text, err := repl.ReplaceOrErr(s, true, true)
	if err == nil && !utf8.ValidString(text) {
		err = fmt.Errorf("%s is not valid UTF-8", s)
	}
	return text, err
}

// splitPermissions takes values that may each hold several permissions and
// returns them sorted and without repeats.
func splitPermissions(values []string) []string {
	permissions := make([]string, 0, len(values))
	for _, value := range values {
		permissions = append(permissions, strings.FieldsFunc(value, func(r rune) bool {
			return r == ',' || r == ' ' || r == '\t'
		})...)
	}
	slices.Sort(permissions)
	return slices.Compact(permissions)
}

// claimSet is a compiled set of further claims.
type claimSet struct {
	fixed     string // all of them as JSON members, if none holds a placeholder
	templates []claimTemplate
}

type claimTemplate struct {
	name  string
	value any // decoded JSON; strings may hold placeholders
}

func newClaimSet(claims map[string]json.RawMessage) (claimSet, error) {
	var set claimSet
	static := true
	for _, name := range slices.Sorted(maps.Keys(claims)) {
		value, err := decodeJSON(claims[name])
		if err != nil {
			return claimSet{}, fmt.Errorf("claim %q: %w", name, err)
		}
		for _, text := range stringsIn(value, nil) {
			static = static && !hasPlaceholder(text)
		}
		set.templates = append(set.templates, claimTemplate{name, value})
	}
	if !static {
		return set, nil
	}
	// Without placeholders the replacer only removes the escapes in front of braces.
	fixed, err := set.resolve(caddy.NewEmptyReplacer())
	return claimSet{fixed: fixed}, err
}

func (s *claimSet) static() bool { return len(s.templates) == 0 }

func (s *claimSet) resolve(repl *caddy.Replacer) (string, error) {
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
		writeJSON(&b, claim.name)
		b.WriteByte(':')
		writeJSON(&b, value)
	}
	return b.String(), nil
}

// decodeJSON reads exactly one JSON value and keeps numbers as they are written.
// An object that has two members of one name is an error: what reads it next
// would keep one of them.
func decodeJSON(raw json.RawMessage) (any, error) {
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

// stringsIn appends every string inside a decoded JSON value.
func stringsIn(value any, found []string) []string {
	switch v := value.(type) {
	case string:
		found = append(found, v)
	case []any:
		for _, item := range v {
			found = stringsIn(item, found)
		}
	case map[string]any:
		for _, item := range v {
			found = stringsIn(item, found)
		}
	}
	return found
}

// placeholdersIn returns the names of the placeholders in s as Caddy's own
// replacer finds them.
func placeholdersIn(s string) []string {
	var names []string
	repl := caddy.NewEmptyReplacer()
	repl.Map(func(name string) (any, bool) {
		names = append(names, name)
		return "", true
	})
	repl.ReplaceAll(s, "")
	return names
}

func hasPlaceholder(s string) bool { return len(placeholdersIn(s)) > 0 }

// clientWritten reports whether a client chooses the placeholder's value.
// The query is allowed where the value is an id, which clients choose anyway.
func clientWritten(placeholder string, queryAllowed bool) bool {
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
