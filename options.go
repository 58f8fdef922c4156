package viewersession

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/viewersession/caddy-viewer-session/internal/claims"
	"github.com/viewersession/caddy-viewer-session/internal/dws"
)

const (
	defaultPermission = "read"
	defaultTTL        = time.Hour
	minTTL, maxTTL    = time.Minute, 30 * 24 * time.Hour
)

// TokenOptions is what the API is asked for. On a route, what is set overrides
// the handler's; claims are overridden one by one.
type TokenOptions struct {
	// What the token permits, sent as document_permissions and as
	// permissions. A value may hold placeholders, and several permissions
	// separated by spaces or commas. If none is left, the answer is 403. The
	// API knows read, write and download; a token that permits more than is
	// asked for is not used. Default: `read`
	Permissions []string `json:"permissions,omitempty"`

	// The user_id claim, with a placeholder in it. If it comes out empty, the
	// answer is 401. Default: none.
	UserID string `json:"user_id,omitempty"`

	// Placeholders whose values are further parts of the cache key, not sent
	// to the API: a token is never shared across different values.
	VaryBy []string `json:"vary_by,omitempty"`

	// Accept that everybody who opens a document gets the same token. It is
	// required for permissions beyond `read`, and for app_provided, without
	// user_id or vary_by.
	Shared bool `json:"shared,omitempty"`

	// Further claims at the top of the request. Placeholders are replaced
	// inside strings, once; if one comes out empty, the answer is 403.
	// Numbers beyond ±(2^53-1) are refused, since Caddy reads configs into
	// doubles.
	Claims map[string]json.RawMessage `json:"claims,omitempty"`

	// Further claims in the document's entry.
	DocumentClaims map[string]json.RawMessage `json:"document_claims,omitempty"`

	// How long a token is asked to be valid: 1m to 30d. Default: `1h`
	TTL caddy.Duration `json:"ttl,omitempty"`

	// How long every token that is handed out is still good for, as long as
	// one can be minted: at most half of ttl. Default: a quarter of ttl.
	MinRemaining caddy.Duration `json:"min_remaining,omitempty"`

	// Allow user_id, permissions, claims and document_id to come from what
	// clients write: request headers, cookies, the body and the query. For
	// an authenticating proxy in front of Caddy.
	TrustRequestHeaders bool `json:"trust_request_headers,omitempty"`
}

// over returns the options completed with the handler's and the defaults.
func (o TokenOptions) over(base TokenOptions) TokenOptions {
	if o.Permissions == nil {
		o.Permissions = base.Permissions
	}
	if o.Permissions == nil {
		o.Permissions = []string{defaultPermission}
	}
	if o.UserID == "" {
		o.UserID = base.UserID
	}
	if o.VaryBy == nil {
		o.VaryBy = base.VaryBy
	}
	o.Shared = o.Shared || base.Shared
	o.TrustRequestHeaders = o.TrustRequestHeaders || base.TrustRequestHeaders
	o.Claims = mergeClaims(base.Claims, o.Claims)
	o.DocumentClaims = mergeClaims(base.DocumentClaims, o.DocumentClaims)
	if o.TTL == 0 {
		o.TTL = base.TTL
	}
	if o.TTL == 0 {
		o.TTL = caddy.Duration(defaultTTL)
	}
	if o.MinRemaining == 0 {
		o.MinRemaining = base.MinRemaining
	}
	if o.MinRemaining == 0 {
		o.MinRemaining = o.TTL / 4
	}
	return o
}

func mergeClaims(base, own map[string]json.RawMessage) map[string]json.RawMessage {
	merged := maps.Clone(base)
	if merged == nil {
		return own
	}
	maps.Copy(merged, own)
	return merged
}

// check refuses options that are wrong or that would hurt their user. They
// must be complete. documentID is the route's template, if it has one.
func (o TokenOptions) check(documentID string, appProvided bool) error {
	if ttl := time.Duration(o.TTL); ttl < minTTL || ttl > maxTTL {
		return fmt.Errorf("ttl %s: write a duration from 1m to 30d", ttl)
	}
	if o.MinRemaining < 0 || o.MinRemaining > o.TTL/2 {
		return fmt.Errorf("min_remaining %s: write at most half of ttl (%s), or a longer ttl",
			time.Duration(o.MinRemaining), time.Duration(o.TTL/2))
	}
	if len(o.Permissions) == 0 {
		return errors.New("permissions: the list is empty, which the API would take for all permissions; name at least one")
	}
	if !slices.ContainsFunc(o.Permissions, claims.HasPlaceholder) && len(claims.SplitPermissions(o.Permissions)) == 0 {
		return errors.New("permissions: only separators; name at least one")
	}
	if err := checkPermissionNames(o.Permissions); err != nil {
		return err
	}
	if err := o.checkShared(appProvided); err != nil {
		return err
	}
	for _, set := range []map[string]json.RawMessage{o.Claims, o.DocumentClaims} {
		for _, name := range slices.Sorted(maps.Keys(set)) {
			if err := claims.Check(name, set[name]); err != nil {
				return err
			}
		}
	}
	return o.checkSources(documentID)
}

// template compiles the options, which must be complete and valid.
func (o TokenOptions) template(appProvided bool) (*claims.Template, error) {
	return claims.NewTemplate(claims.Options{
		AppProvided: appProvided,
		Permissions: o.Permissions, UserID: o.UserID, VaryBy: o.VaryBy, Shared: o.Shared, Claims: o.Claims, DocumentClaims: o.DocumentClaims,
		TTL: time.Duration(o.TTL), MinRemaining: time.Duration(o.MinRemaining),
	})
}

func checkPermissionNames(permissions []string) error {
	for _, value := range permissions {
		if claims.HasPlaceholder(value) {
			continue
		}
		for _, name := range claims.SplitPermissions([]string{value}) {
			for _, known := range dws.KnownPermissions {
				if name != known && editDistance(strings.ToLower(name), known) <= 2 {
					return fmt.Errorf("permissions: %q looks like a typo: did you mean %s?", name, known)
				}
			}
		}
	}
	return nil
}

// checkShared refuses tokens that everybody would share although they permit more
// than reading, or nobody knows what, unless the config says shared.
func (o TokenOptions) checkShared(appProvided bool) error {
	if o.UserID != "" {
		names := claims.PlaceholdersIn(o.UserID)
		if !slices.ContainsFunc(names, variesByRequest) {
			return fmt.Errorf("user_id %s is the same for everybody: give a placeholder that names the user, for example {http.auth.user.id}, or remove it", o.UserID)
		}
	}
	for _, template := range o.VaryBy {
		if !slices.ContainsFunc(claims.PlaceholdersIn(template), variesByRequest) {
			return fmt.Errorf("vary_by %s is the same for all requests, so nothing varies by it", template)
		}
	}
	if o.Shared || o.UserID != "" || len(o.VaryBy) > 0 {
		return nil
	}
	if appProvided {
		return errors.New("app_provided needs user_id (for example {http.auth.user.id}) or vary_by, so that users do not share a token; to give everybody the same one, add shared")
	}
	for _, permission := range claims.SplitPermissions(o.Permissions) {
		if permission != defaultPermission {
			return fmt.Errorf("permissions %s go beyond read, and everybody would get the same token: add user_id (or vary_by), or shared if that is what you want", strings.Join(o.Permissions, " "))
		}
	}
	return nil
}

// variesByRequest is false for placeholders that are the same for all requests.
func variesByRequest(placeholder string) bool {
	for _, prefix := range []string{"env.", "file.", "system.", "time."} {
		if strings.HasPrefix(placeholder, prefix) {
			return false
		}
	}
	return true
}

// checkSources refuses placeholders that cannot work, and those that clients
// control, unless they are trusted.
func (o TokenOptions) checkSources(documentID string) error {
	if documentID != "" && !claims.HasPlaceholder(documentID) {
		return fmt.Errorf("document_id %s holds no placeholder: give one that holds the document's id; for a fixed id set a variable (vars document ID) and write {http.vars.document}", documentID)
	}
	sources := map[string][]string{"document_id": {documentID}, "user_id": {o.UserID}, "permissions": o.Permissions, "vary_by": o.VaryBy}
	for _, set := range []map[string]json.RawMessage{o.Claims, o.DocumentClaims} {
		for name, raw := range set {
			value, err := dws.DecodeJSON(raw)
			if err != nil {
				return fmt.Errorf("claim %q: %w", name, err)
			}
			sources["claim "+name] = append(sources["claim "+name], claims.StringsIn(value, nil)...)
		}
	}
	for _, option := range slices.Sorted(maps.Keys(sources)) {
		for _, template := range sources[option] {
			for _, name := range claims.PlaceholdersIn(template) {
				if err := o.checkSource(option, name); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (o TokenOptions) checkSource(option, placeholder string) error {
	use := claims.ForClaim
	switch option {
	case "user_id", "permissions":
		use = claims.ForIdentity
	case "document_id":
		use = claims.ForDocumentID
	}
	right := claims.Misspelled(placeholder)
	switch {
	case use >= claims.ForClaim && option != "vary_by" && !o.TrustRequestHeaders && !placeholderName.MatchString(placeholder):
		return fmt.Errorf(`%s: {%s} cannot be a placeholder; to send the brace, write \{`, option, placeholder)
	case right != "":
		return fmt.Errorf("%s {%s} is never set, since Go spells that header differently: write {%s}", option, placeholder, right)
	case option == "vary_by" || o.TrustRequestHeaders || !claims.ClientControlled(placeholder, use):
		return nil
	case use == claims.ForDocumentID:
		return fmt.Errorf("document_id {%s} is client-controlled: use the path or the query, or trust_request_headers if a proxy in front of Caddy sets it", placeholder)
	default:
		return fmt.Errorf("%s {%s} is client-controlled, so anybody could choose it: use what authentication in Caddy sets (for example {http.auth.user.id} or {http.reverse_proxy.header.Remote-User}), or trust_request_headers if a proxy in front of Caddy sets it", option, placeholder)
	}
}

// placeholderName is what names of placeholders begin with.
var placeholderName = regexp.MustCompile(`^[A-Za-z_$]`)
