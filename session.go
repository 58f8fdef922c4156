package viewersession

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

const (
	// With its 204, the app may say more than the URL does in these response
	// headers. They never reach the browser.
	documentHeader    = "X-Viewer-Document"
	permissionsHeader = "X-Viewer-Permissions"
	userHeader        = "X-Viewer-User"

	// rejectedHeader is the request header in which a browser names the token
	// that was rejected. It never reaches the app.
	rejectedHeader = "X-Viewer-Rejected"
)

// serveSession answers a request to a path at which the browser fetches its
// token. The app is asked first, and gets no token: if it answers 204, the
// browser gets one. Any other answer of the app passes as it is.
func (h *Handler) serveSession(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler, visit *visit, template *askTemplate) error {
	visit.bypass() // unless the app says yes
	rejected := r.Header.Get(rejectedHeader)
	carrier{header: rejectedHeader}.strip(r)

	fetches := (r.Method == http.MethodGet || r.Method == http.MethodHead) && !getsNone(r)
	if site := r.Header.Get("Sec-Fetch-Site"); fetches && (site == "cross-site" || site == "same-site") {
		return h.failSession(w, visit, &failure{reason: reasonCrossSite, err: fmt.Errorf("a %s page asks for a token", site)})
	}
	// What the request is worth is settled before the app is called, which may
	// run handlers that change placeholders.
	repl := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	ask, missing := template.resolve(repl, visit.documentID)

	answer := new(appAnswer)
	recorder := caddyhttp.NewResponseRecorder(w, new(bytes.Buffer), func(status int, header http.Header) bool {
		answer.take(header)
		return fetches && status == http.StatusNoContent
	})
	err := next.ServeHTTP(recorder, r)
	answer.dropTrailers(w.Header())
	if err != nil || !recorder.Buffered() || recorder.Status() != http.StatusNoContent {
		h.bypass(visit)
		return err
	}

	// The app said yes.
	f := answer.apply(&ask, &missing, h.fits)
	visit.documentID = ask.documentID
	if f != nil {
		return h.failSession(w, visit, f)
	}
	token, result, f := h.pool.getAnother(r.Context(), &ask, rejected)
	if f != nil {
		return h.failSession(w, visit, f)
	}
	h.pool.counters.countRequest(result)
	visit.set(result, token, nil)
	return writeSession(w, r, token)
}

// failSession answers with an error: on_error has no say here, since the
// browser needs a token or a reason.
func (h *Handler) failSession(w http.ResponseWriter, visit *visit, f *failure) error {
	keepPrivate(w.Header())
	return h.fail(w, visit, f)
}

func writeSession(w http.ResponseWriter, r *http.Request, token *token) error {
	body, err := json.Marshal(struct { //nolint:gosec // it is what the browser asked for
		JWT string `json:"jwt"`
		Exp int64  `json:"exp"`
	}{token.jwt, token.exp})
	if err != nil {
		return err
	}
	header := w.Header()
	keepPrivate(header)
	header.Set("Content-Type", "application/json")
	header.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(http.StatusOK)
	if r.Method != http.MethodHead {
		_, err = w.Write(body)
	}
	return err
}

// keepPrivate lets nobody but the page that asked read the answer, or keep it.
// What the app said of its own, empty answer goes; its cookies stay.
func keepPrivate(header http.Header) {
	for name := range header {
		if strings.HasPrefix(name, "Content-") || strings.HasPrefix(name, "Access-Control-") {
			delete(header, name)
		}
	}
	for _, name := range append([]string{"Etag", "Last-Modified", "Expires", "Accept-Ranges", "Trailer", "Timing-Allow-Origin"}, sharedCacheHeaders...) {
		delete(header, name)
	}
	header.Set("Cache-Control", "no-store")
	header.Set("X-Content-Type-Options", "nosniff")
}

// appAnswer is what the app says in response headers on a session path. What
// it does not say is nil.
type appAnswer struct {
	document, permissions, user []string
}

// take reads the headers and removes them from the answer.
func (s *appAnswer) take(header http.Header) {
	s.document, s.permissions, s.user = header[documentHeader], header[permissionsHeader], header[userHeader]
	for _, name := range []string{documentHeader, permissionsHeader, userHeader} {
		delete(header, name)
	}
}

// dropTrailers removes the headers where they come as trailers.
func (s *appAnswer) dropTrailers(header http.Header) {
	for _, name := range []string{documentHeader, permissionsHeader, userHeader} {
		delete(header, name)
		delete(header, http.TrailerPrefix+name)
	}
}

// apply lets the app's words replace the URL's and the config's. A header that
// is there but says nothing is not the same as none: an app that looked for
// something and found nothing must not get what it did not mean.
func (s *appAnswer) apply(a *ask, missing *unresolved, fits func(string) bool) *failure {
	switch {
	case s.document == nil && a.documentID == "":
		return &failure{reason: reasonAppAnswer, err: errors.New("the app answered 204 without " + documentHeader + ", and the session path has no document's id")}
	case s.document == nil:
	case len(s.document) != 1 || !fits(s.document[0]):
		return &failure{reason: reasonAppAnswer, err: fmt.Errorf("%s %q of the app's answer is not one id that fits document_id_format", documentHeader, s.document)}
	default:
		a.documentID = s.document[0]
	}
	switch {
	case s.user == nil:
	case len(s.user) != 1 || !utf8.ValidString(s.user[0]):
		return &failure{reason: reasonAppAnswer, err: fmt.Errorf("%s of the app's answer is not one user, or not valid UTF-8", userHeader)}
	case s.user[0] == "":
		missing.user = &failure{reason: reasonNoUser, err: fmt.Errorf("%s of the app's answer is empty", userHeader)}
	default:
		a.userID, missing.user = s.user[0], nil
	}
	if s.permissions != nil {
		permissions, err := readPermissions(s.permissions)
		if err != nil {
			missing.permissions = &failure{reason: reasonNoPermission, err: fmt.Errorf("%s of the app's answer: %w", permissionsHeader, err)}
		} else {
			missing.permissions = nil
			a.permissions, a.keyPart = permissions, nil // which was prepared for others
		}
	}
	return missing.first()
}
