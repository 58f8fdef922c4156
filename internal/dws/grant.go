package dws

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
)

// permissionMembers are the names under which permissions are asked for, and
// under which a token may state them. The first is the documented one.
var permissionMembers = [...]string{"document_permissions", "permissions"}

// KnownPermissions are those that the API documents. Others are passed on with
// a warning, since it may learn more; what looks like a typo is refused.
var KnownPermissions = []string{"read", "write", "download"}

// Grant is what a token says that it permits.
type Grant struct {
	Permissions []string // sorted, without repeats; empty if the token does not say
	StatedAs    []string // the members that say so
	names       []string // as they are written
}

// readGrant reads the permissions that a token states, in any of the objects
// and under either name. All that is stated counts.
func readGrant(objects []map[string]json.RawMessage) (Grant, error) {
	var g Grant
	for _, name := range permissionMembers {
		for _, object := range objects {
			raw := object[name]
			if !stated(raw) {
				continue
			}
			var names []*string
			if json.Unmarshal(raw, &names) != nil || slices.Contains(names, nil) {
				return Grant{}, fmt.Errorf("the token's %s is not a list of names", name)
			}
			for _, stated := range names {
				for _, permission := range strings.FieldsFunc(*stated, separatesPermissions) {
					g.Permissions = append(g.Permissions, normalPermission(permission))
					g.StatedAs = append(g.StatedAs, name)
					g.names = append(g.names, permission)
				}
			}
		}
	}
	slices.Sort(g.Permissions)
	g.Permissions = slices.Compact(g.Permissions)
	g.StatedAs = slices.Compact(g.StatedAs)
	return g, nil
}

// separatesPermissions reports whether r is between two names, or around one.
func separatesPermissions(r rune) bool {
	return r == ',' || unicode.IsSpace(r) || unicode.IsControl(r) || unicode.Is(unicode.Cf, r)
}

// normalPermission returns the name by which permissions are compared.
// read-document is what the vendor's self-hosted server calls read.
func normalPermission(name string) string {
	return strings.TrimSuffix(strings.ToLower(strings.TrimSpace(name)), "-document")
}

func normalPermissions(names []string) []string {
	normal := make([]string, len(names))
	for i, name := range names {
		normal[i] = normalPermission(name)
	}
	return normal
}

// overGrantError is the error for a token that permits more than was asked for.
type overGrantError struct{ text string }

// Error implements error.
func (e *overGrantError) Error() string { return e.text }

// check returns an *overGrantError if the token permits what was not asked for.
func (g Grant) check(asked []string) error {
	asked = normalPermissions(asked)
	var extra []string
	for _, permission := range []string{"write", "download"} {
		if slices.Contains(g.Permissions, permission) && !slices.Contains(asked, permission) {
			extra = append(extra, permission)
		}
	}
	if len(extra) == 0 {
		return nil
	}
	more := strings.Join(extra, " and ")
	return &overGrantError{fmt.Sprintf("the token also permits %s, which was not asked for, so it is not used; if %s is wanted, ask for it in permissions; "+
		"if not, the API does not follow what it is asked for: see what caddy viewer-session mint says, and report it to the API's vendor", more, more)}
}

// checkFallback is check for a token that was asked for in the documented way
// only. An API that does not read that name grants everything, so silence is
// not taken for consent there.
func (g Grant) checkFallback(asked []string) error {
	if len(g.Permissions) > 0 || asksAll(asked) {
		return nil
	}
	return &overGrantError{"the token does not state its permissions, and the API refuses a request that names them as permissions, so the token may permit everything and is not used; " +
		"see what caddy viewer-session mint says; if read, write and download are all wanted, ask for them in permissions"}
}

// asksAll reports whether nothing is left that could be granted beside.
func asksAll(asked []string) bool {
	asked = normalPermissions(asked)
	return !slices.ContainsFunc(KnownPermissions, func(known string) bool { return !slices.Contains(asked, known) })
}

// Doubts returns what to warn of in a token that is used: what it lacks of what
// was asked for, or why it cannot be told what it permits.
func (g Grant) Doubts(asked []string) (missing []string, unverified error) {
	asked = normalPermissions(asked)
	if len(g.Permissions) == 0 {
		return nil, errors.New("the token does not state its permissions")
	}
	for _, permission := range asked {
		if !slices.Contains(g.Permissions, permission) {
			missing = append(missing, permission)
		}
	}
	var unknown []string
	for _, name := range g.names {
		if normal := normalPermission(name); !slices.Contains(asked, normal) && !slices.Contains(KnownPermissions, normal) {
			unknown = append(unknown, name) // as it is written, so that secrets in it can be told
		}
	}
	if len(unknown) > 0 {
		return missing, fmt.Errorf("the token states permissions that are not known: %s", strings.Join(unknown, " "))
	}
	return missing, nil
}
