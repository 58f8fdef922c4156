// Package dws speaks with the Nutrient DWS Viewer API: it asks for a session
// token and checks what comes back. It knows nothing of caches, nor of the
// requests that a token is for.
package dws

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"
)

// Request is a session request: what the API is asked for.
type Request struct {
	DocumentID  string
	Permissions []string // sorted, without repeats, never empty but for AppProvided
	UserID      string   // empty: no user_id is sent

	// Claims and DocumentClaims hold further members of a JSON object, each
	// with a leading comma, or nothing.
	Claims, DocumentClaims string

	TTL time.Duration

	// AppProvided asks for a session for documents that the page itself passes to
	// the viewer. It has no document, and so neither permissions nor
	// DocumentClaims.
	AppProvided bool
}

// Form is how a request names the permissions. The API's guides say
// document_permissions; those who have tried it say that it reads permissions,
// and takes a request without as one for all permissions.
type Form uint8

// The forms of a request.
const (
	BothNames      Form = iota // the same list under both names
	DocumentedName             // as documented, for an API that refuses the other
)

// Members returns the names of the body's members that hold the permissions.
func (f Form) Members() []string {
	if f == DocumentedName {
		return permissionMembers[:1]
	}
	return permissionMembers[:]
}

// Body returns the request body.
func (r *Request) Body(exp int64, form Form) []byte {
	var b bytes.Buffer
	b.WriteByte('{')
	if !r.AppProvided {
		b.WriteString(`"allowed_documents":[{"document_id":`)
		WriteJSON(&b, r.DocumentID)
		for _, name := range form.Members() {
			fmt.Fprintf(&b, `,%q:`, name)
			WriteJSON(&b, r.Permissions)
		}
		b.WriteString(r.DocumentClaims)
		b.WriteString("}],")
	}
	fmt.Fprintf(&b, `"exp":%d`, exp)
	if r.UserID != "" {
		b.WriteString(`,"user_id":`)
		WriteJSON(&b, r.UserID)
	}
	b.WriteString(r.Claims)
	b.WriteByte('}')
	return b.Bytes()
}

// WriteJSON writes a value that cannot fail to marshal: strings, and what was JSON before.
func WriteJSON(b *bytes.Buffer, value any) {
	enc := json.NewEncoder(b)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(value)
	b.Truncate(b.Len() - 1) // the encoder's newline
}

// Documented reports whether there is a documented form of the request: the API's
// guides name all of the permissions, and there are some.
func (r *Request) Documented() bool {
	return !r.AppProvided && !slices.ContainsFunc(r.Permissions, func(name string) bool { return !slices.Contains(KnownPermissions, name) })
}

// MayFallBack reports whether to ask once more in the documented form: the API
// has refused one that names the permissions twice, and that may be why. With
// permissions that are not documented, they may be why.
func (r *Request) MayFallBack(err error, form Form) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && form == BothNames && r.Documented() &&
		(e.StatusCode == http.StatusBadRequest || e.StatusCode == http.StatusUnprocessableEntity)
}
