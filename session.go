package viewersession

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/viewersession/caddy-viewer-session/internal/claims"
	"github.com/viewersession/caddy-viewer-session/internal/clock"
	"github.com/viewersession/caddy-viewer-session/internal/strip"
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

// rejectedNames are for the gateway alone.
var rejectedNames = strip.New(rejectedHeader, "")

// rejectedToken is what a browser says was rejected, among the request's
// variables: another instance may be the one that answers.
type rejectedToken string

// String keeps {http.vars.*} from printing it.
func (rejectedToken) String() string { return "" }

const rejectedKey = requestInfoKey + ".rejected"

// takeRejected moves the rejected token from the request to its variables.
func takeRejected(r *http.Request) {
	if rejected := r.Header.Get(rejectedHeader); rejected != "" {
		caddyhttp.SetVar(r.Context(), rejectedKey, rejectedToken(rejected))
	}
	rejectedNames.Strip(r, nil)
}

// hideApproval returns the writer behind which what the app says to the gateway
// stays inside. If there are session paths, that is so on all others as well,
// which may differ from them by no more than what some server makes of a path.
// room is used for it if there is any and it is not taken.
func (h *Handler) hideApproval(room *approvalWriter, w http.ResponseWriter, r *http.Request) http.ResponseWriter {
	if info := requestInfoFrom(r); !h.hasSessions || info != nil && info.awaitsApproval {
		return w // or an instance further out takes it
	}
	if room == nil || room.ResponseWriter != nil {
		room = new(approvalWriter)
	}
	room.ResponseWriter = w
	return room
}

// pass calls the next handler without a token.
func (h *Handler) pass(room *approvalWriter, w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	hidden := h.hideApproval(room, w, r)
	err := next.ServeHTTP(hidden, r)
	if hidden != w {
		dropApproval(w.Header()) // what comes as trailers
	}
	return err
}

// serveSession answers a request to a path at which the browser fetches its
// token. The app is asked first, and gets no token: if it answers 204, the
// browser gets one. Any other answer of the app passes as it is.
func (h *Handler) serveSession(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler, info *requestInfo, template *claims.Template) error {
	info.bypass() // unless the app approves
	rejected, _ := caddyhttp.GetVar(r.Context(), rejectedKey).(rejectedToken)

	fetches := (r.Method == http.MethodGet || r.Method == http.MethodHead) && !skipsToken(r)
	if site := r.Header.Get("Sec-Fetch-Site"); fetches && (site == "cross-site" || site == "same-site") {
		return h.failSession(w, info, &failure{reason: reasonCrossSite, err: fmt.Errorf("a %s page asks for a token", site)})
	}
	// Claims are resolved before the app is called, which may run handlers that
	// change placeholders.
	repl := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	var c claims.Claims
	missing := template.Resolve(&c, repl, info.documentID)

	writer := &approvalWriter{ResponseWriterWrapper: caddyhttp.ResponseWriterWrapper{ResponseWriter: w}, fetches: fetches}
	info.awaitsApproval = true
	err := next.ServeHTTP(writer, r)
	info.awaitsApproval = false
	dropApproval(w.Header())
	if err != nil || !writer.approved {
		h.bypass(info)
		return err
	}

	f := writer.approval.apply(&c, missing, h.fits)
	info.documentID = c.DocumentID
	if f != nil {
		return h.failSession(w, info, f)
	}
	token, result, f := h.pool.replace(r.Context(), &c, string(rejected))
	if f != nil {
		return h.failSession(w, info, f)
	}
	h.pool.stats.countRequest(result)
	info.set(result, token, nil)
	err = writeSession(w, r, token, h.pool.now())
	if !saysNoStore(w.Header()["Cache-Control"]) {
		h.noteReplaced()
	}
	return err
}

// approvalWriter holds back the app's 204 and passes on everything else, except
// the headers in which the app tells the gateway more. It buffers nothing.
type approvalWriter struct {
	caddyhttp.ResponseWriterWrapper
	fetches     bool // whether a 204 is an approval
	wroteHeader bool
	approved    bool
	approval    approval
}

// WriteHeader implements http.ResponseWriter.
func (w *approvalWriter) WriteHeader(status int) {
	header := w.Header()
	switch {
	case w.approved:
	case w.wroteHeader:
		w.ResponseWriter.WriteHeader(status)
	case status < 200 && status != http.StatusSwitchingProtocols: // informational: the final header is still to come
		said := takeApproval(header)
		w.ResponseWriter.WriteHeader(status)
		said.putBack(header)
	default:
		w.wroteHeader = true
		w.approval = takeApproval(header)
		if w.approved = w.fetches && status == http.StatusNoContent; !w.approved {
			w.ResponseWriter.WriteHeader(status)
		}
	}
}

func (w *approvalWriter) writeHeader() {
	if !w.wroteHeader {
		w.WriteHeader(http.StatusOK)
	}
}

// Write implements http.ResponseWriter.
func (w *approvalWriter) Write(p []byte) (int, error) {
	w.writeHeader()
	if w.approved {
		return len(p), nil // there is no body with a 204
	}
	return w.ResponseWriter.Write(p)
}

// ReadFrom implements io.ReaderFrom.
func (w *approvalWriter) ReadFrom(r io.Reader) (int64, error) {
	w.writeHeader()
	if w.approved {
		return io.Copy(io.Discard, r)
	}
	return w.ResponseWriterWrapper.ReadFrom(r)
}

// FlushError is what http.ResponseController looks for. Flushing writes the
// header as well.
func (w *approvalWriter) FlushError() error {
	w.writeHeader()
	if w.approved {
		return nil
	}
	//nolint:bodyclose // there is no body here
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// failSession answers with an error, whatever on_error says: the browser needs a
// token or a reason.
func (h *Handler) failSession(w http.ResponseWriter, info *requestInfo, f *failure) error {
	keepPrivate(w.Header())
	return h.fail(w, info, f)
}

func writeSession(w http.ResponseWriter, r *http.Request, token *token, now clock.Time) error {
	body, err := json.Marshal(struct { //nolint:gosec // it is what the browser asked for
		JWT       string `json:"jwt"`
		Exp       int64  `json:"exp"`
		ExpiresIn int64  `json:"expires_in"` // seconds, so that pages need no clock of their own
	}{token.jwt(), token.exp, int64(token.remaining(now).Seconds())})
	if err != nil {
		return err
	}
	header := w.Header()
	keepPrivate(header)
	header.Del("Date") // the app's: net/http sets ours, by which the page knows how far its own clock is off
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
		if strings.HasPrefix(name, "Access-Control-") {
			delete(header, name)
		}
	}
	for _, name := range slices.Concat(representationHeaders, sharedCacheHeaders, approvalHeaders) {
		delete(header, name)
	}
	header.Set("Cache-Control", "no-store")
	header.Add("Vary", "*")
	header.Set("X-Content-Type-Options", "nosniff")
}

// representationHeaders describe one answer, or who may have it.
var representationHeaders = []string{
	"Content-Type", "Content-Length", "Content-Encoding", "Content-Language", "Content-Location", "Content-Range", "Content-Disposition",
	"Content-Digest", "Content-Md5", "Digest", "Repr-Digest", "Etag", "Last-Modified", "Expires", "Accept-Ranges", "Trailer", "Timing-Allow-Origin",
}

var approvalHeaders = []string{documentHeader, permissionsHeader, userHeader}

// approval is what the app says in response headers on a session path. What
// it does not say is nil.
type approval struct {
	document, permissions, user []string
}

// takeApproval reads what the app says and removes it from the answer.
func takeApproval(header http.Header) approval {
	said := approval{header[documentHeader], header[permissionsHeader], header[userHeader]}
	dropApproval(header)
	return said
}

func (s *approval) putBack(header http.Header) {
	for name, values := range map[string][]string{documentHeader: s.document, permissionsHeader: s.permissions, userHeader: s.user} {
		if values != nil {
			header[name] = values
		}
	}
}

// dropApproval removes what the app says, also where it comes as trailers.
func dropApproval(header http.Header) {
	for _, name := range approvalHeaders {
		delete(header, name)
		delete(header, http.TrailerPrefix+name)
	}
}

// hideOwn removes from an answer of the handler's own what somebody further out
// has said under the app's names.
func (h *Handler) hideOwn(w http.ResponseWriter) {
	if h.hasSessions {
		dropApproval(w.Header())
	}
}

// apply lets the app's words replace the URL's and the config's. A header that
// is there but says nothing is not the same as none: an app that looked for
// something and found nothing must not get what it did not mean.
func (s *approval) apply(c *claims.Claims, missing claims.Missing, fits func(string) bool) *failure {
	switch {
	case c.AppProvided && (s.document != nil || s.permissions != nil):
		return &failure{reason: reasonAppAnswer, err: fmt.Errorf("the app answered 204 with %s or %s, but on an app_provided route there is neither a document nor permissions", documentHeader, permissionsHeader)}
	case c.AppProvided:
	case s.document == nil && c.DocumentID == "":
		return &failure{reason: reasonAppAnswer, err: errors.New("the app answered 204 without " + documentHeader + ", and the session path has no document's id")}
	case s.document == nil:
	case len(s.document) != 1 || !fits(s.document[0]):
		return &failure{reason: reasonAppAnswer, err: fmt.Errorf("%s %.60q of the app's answer is not one id that fits document_id_format", documentHeader, strings.Join(s.document, ", "))}
	default:
		c.DocumentID = s.document[0]
	}
	switch {
	case s.user == nil:
	case len(s.user) != 1 || !utf8.ValidString(s.user[0]):
		return &failure{reason: reasonAppAnswer, err: fmt.Errorf("%s of the app's answer is not one user, or not valid UTF-8", userHeader)}
	case s.user[0] == "":
		missing.User = fmt.Errorf("%s of the app's answer is empty", userHeader)
	default:
		c.UserID, missing.User = s.user[0], nil
	}
	if s.permissions != nil {
		permissions, err := claims.ReadPermissions(s.permissions)
		if err != nil {
			missing.Permissions = fmt.Errorf("%s of the app's answer: %w", permissionsHeader, err)
		} else {
			missing.Permissions = nil
			c.SetPermissions(permissions)
		}
	}
	return failureOfMissing(c, missing)
}
