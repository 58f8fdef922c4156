package viewersession

import (
	"net/http"
	"strings"

	"github.com/viewersession/caddy-viewer-session/internal/strip"
)

// inject puts the token on the request under these names. What the client sent
// under them has been stripped.
func (i *requestInfo) inject(r *http.Request, names *strip.Names, jwt string) {
	if names.Header != "" {
		value := i.header[:]
		if len(i.placed) > 0 {
			value = []string{""} // the room in i is taken
		}
		// Later header operations may edit the value in place; its capacity
		// keeps them from writing beyond it.
		value[0] = jwt
		r.Header[names.Header] = value[:1:1]
	}
	if names.Cookie != "" {
		for _, other := range i.placed {
			if other.Cookie != "" && strip.MayHoldCookie(other.Cookie, names.Cookie) {
				strip.RemoveCookie(r.Header, other.Cookie, other.Value)
			}
		}
		text := names.Cookie + "=" + jwt
		if others := r.Header["Cookie"]; len(others) > 0 {
			// In front: some parsers give up at a malformed or the thousandth pair.
			text += "; " + strings.Join(others, "; ")
		}
		r.Header["Cookie"] = []string{text}
	}
	i.placed = append(i.placed, strip.Placed{Names: names, Value: jwt})
}

// remove takes the latest token off the request again. Handlers in a chain
// return in the reverse order of their calls.
func (i *requestInfo) remove(r *http.Request) {
	last := i.placed[len(i.placed)-1]
	if last.Header != "" {
		delete(r.Header, last.Header)
	}
	if last.Cookie != "" {
		strip.RemoveCookie(r.Header, last.Cookie, last.Value)
	}
	i.placed = i.placed[:len(i.placed)-1]
}
