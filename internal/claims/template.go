package claims

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/caddyserver/caddy/v2"

	"github.com/viewersession/caddy-viewer-session/internal/dws"
)

// Options are a route's token options, complete and valid.
type Options struct {
	Permissions            []string
	UserID                 string
	VaryBy                 []string
	Shared                 bool // everybody may get the same token
	Claims, DocumentClaims map[string]json.RawMessage
	TTL, MinRemaining      time.Duration
	AppProvided            bool // there is no document, and so no permissions
}

// Template is the compiled form of Options.
type Template struct {
	permissions []string
	userID      string
	varyBy      []string
	guarded     bool // by varyBy alone

	claims, documentClaims set

	// Static holds what is the same for every request.
	Static Claims
}

// NewTemplate compiles options.
func NewTemplate(o Options) (*Template, error) {
	t := &Template{
		permissions: o.Permissions,
		userID:      o.UserID,
		guarded:     o.UserID == "" && !o.Shared,
		Static:      Claims{Request: dws.Request{TTL: o.TTL, AppProvided: o.AppProvided}, MinRemaining: o.MinRemaining},
	}
	// One by one: of two values in one piece nobody could say where the second begins.
	for _, value := range o.VaryBy {
		for _, name := range PlaceholdersIn(value) {
			t.varyBy = append(t.varyBy, "{"+name+"}")
		}
	}
	var err error
	if t.claims, err = newSet(o.Claims); err != nil {
		return nil, err
	}
	if t.documentClaims, err = newSet(o.DocumentClaims); err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(t.permissions, HasPlaceholder) {
		t.Static.Permissions = SplitPermissions(t.permissions)
		if t.claims.static() && t.documentClaims.static() {
			t.Static.Request.Claims, t.Static.DocumentClaims = t.claims.fixed, t.documentClaims.fixed
			t.Static.staticKey = t.Static.appendStaticKey(nil)
		}
	}
	return t, nil
}

// Missing is why a request cannot be resolved; nil errors for what it has.
type Missing struct{ User, Permissions, Claims error }

// Resolve fills in the request's values. Each template is replaced once and
// the outcome is never parsed again: text that came from a request must not be
// able to name {env.*} or {file.*}.
func (t *Template) Resolve(c *Claims, repl *caddy.Replacer, documentID string) (missing Missing) {
	*c = t.Static
	c.DocumentID = documentID
	var err error
	if t.userID != "" {
		if c.UserID, err = replaceText(t.userID, repl); err != nil {
			missing.User = fmt.Errorf("user_id: %w", err)
		}
	}
	if c.Permissions == nil {
		replaced := make([]string, len(t.permissions))
		for i, permission := range t.permissions {
			replaced[i] = repl.ReplaceAll(permission, "")
		}
		if c.Permissions, err = ReadPermissions(replaced); err != nil {
			missing.Permissions = fmt.Errorf("permissions %s: %w", strings.Join(t.permissions, " "), err)
		}
	}
	if c.staticKey == nil {
		if c.Request.Claims, err = t.claims.resolve(repl); err == nil {
			c.DocumentClaims, err = t.documentClaims.resolve(repl)
		}
		missing.Claims = err
	}
	if len(t.varyBy) > 0 {
		// The templates are part of the key as well: the same value under
		// another name is another thing.
		c.VaryBy = make([]string, 0, 2*len(t.varyBy))
		for _, template := range t.varyBy {
			value, err := repl.ReplaceOrErr(template, true, true)
			if err != nil {
				value = repl.ReplaceAll(template, "")
				if t.guarded {
					c.emptyGuard = template
				}
			}
			c.VaryBy = append(c.VaryBy, template, value)
		}
	}
	return missing
}

// NeedsVaryBy reports whether claims of the template are refused if vary_by comes
// out empty, and no app names a user.
func (t *Template) NeedsVaryBy(c *Claims) bool {
	if !t.guarded || len(t.varyBy) == 0 {
		return false
	}
	empty := *c
	empty.emptyGuard = t.varyBy[0]
	return empty.Unguarded() != nil
}

// ReadPermissions splits values that are known only at run time.
func ReadPermissions(values []string) ([]string, error) {
	for _, value := range values {
		if !utf8.ValidString(value) {
			return nil, ErrNotUTF8
		}
	}
	permissions := SplitPermissions(values)
	if len(permissions) == 0 {
		return nil, errors.New("none left for this request")
	}
	return permissions, nil
}

// ErrNotUTF8 is part of the error for a value that JSON cannot carry.
var ErrNotUTF8 = errors.New("not valid UTF-8")

// replaceText replaces the placeholders in s, once. One that is unknown or
// empty is an error, and so is text that JSON could not carry unchanged: two
// users must not become one by the bytes that an encoder replaces.
func replaceText(s string, repl *caddy.Replacer) (string, error) {
	text, err := repl.ReplaceOrErr(s, true, true)
	if err == nil && !utf8.ValidString(text) {
		err = fmt.Errorf("%s is %w", s, ErrNotUTF8)
	}
	return text, err
}

// SplitPermissions takes values that may each hold several permissions and
// returns them sorted and without repeats.
func SplitPermissions(values []string) []string {
	permissions := make([]string, 0, len(values))
	for _, value := range values {
		permissions = append(permissions, strings.FieldsFunc(value, func(r rune) bool {
			return r == ',' || r == ' ' || r == '\t'
		})...)
	}
	slices.Sort(permissions)
	return slices.Compact(permissions)
}
