package dws

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"

	"go.opentelemetry.io/otel/propagation"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/viewersession/caddy-viewer-session/internal/clock"
)

const (
	// maxReplyBytes bounds what is read of an answer: a token and some JSON around it.
	maxReplyBytes = 64 << 10

	// maxRetryAfter bounds how long the API can keep the gateway from asking.
	maxRetryAfter = 5 * time.Minute

	// maxDetailBytes bounds each text that an error quotes of the API's answer,
	// and maxFailingPaths how many there are of what is wrong with the request.
	maxDetailBytes  = 300
	maxFailingPaths = 3

	userAgent = "caddy-viewer-session"
)

// Call is one session request with all that it takes to send it.
type Call struct {
	*Request
	Transport http.RoundTripper
	Endpoint  *url.URL
	APIKey    string
	Form      Form
	Now       time.Time         // by the API's clock, as far as it is known; exp is counted from it
	Clock     func() clock.Time // this machine's
}

// Reply is the API's answer, checked. JWT is set only if the token may be used.
type Reply struct {
	Facts
	Exchange
	Lifetime
	JWT        string
	StatusCode int // 0 if there was no answer
}

// Lifetime is how long a token lives, and from when.
type Lifetime struct {
	Minted      clock.Time
	Life, Asked time.Duration
}

// Send sends the request and checks the token that comes back. It does not
// retry. Errors are of type *Error; with one, the reply holds what is known of
// the answer nevertheless.
//
// The request goes through RoundTrip: redirects are not followed, so the key
// reaches no host but the endpoint's.
func (c Call) Send(ctx context.Context) (reply Reply, err error) {
	endpoint, apiKey := c.Endpoint, c.APIKey
	askedExp := c.Now.Add(c.TTL).Unix()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, endpoint.String(), bytes.NewReader(c.Body(askedExp, c.Form)))
	if err != nil {
		return Reply{}, &Error{Reason: Unavailable, Err: fmt.Errorf("building the request for %s: %w", endpoint.Host, err)}
	}
	req.Header.Set("Authorization", "Bearer "+apiKey)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", userAgent)
	propagation.TraceContext{}.Inject(ctx, propagation.HeaderCarrier(req.Header)) // of the mint's own span, if there is one

	reply.Sent = c.Clock()
	resp, err := c.Transport.RoundTrip(req)
	reply.Answered = c.Clock()
	if err != nil {
		return reply, transportError(ctx, endpoint.Host, apiKey, err)
	}
	defer resp.Body.Close()
	reply.Date, reply.StatusCode = resp.Header.Get("Date"), resp.StatusCode
	if resp.StatusCode == http.StatusSwitchingProtocols {
		// The body would be the connection, which heeds no deadline.
		return reply, statusError(resp, nil, apiKey, reply.Answered)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxReplyBytes+1))
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusCreated {
		// Whatever could be read of an error is only quoted.
		return reply, statusError(resp, body, apiKey, reply.Answered)
	}
	if err != nil {
		return reply, transportError(ctx, endpoint.Host, apiKey, err)
	}
	jwt, err := readReply(body)
	if err != nil && ctx.Err() != nil {
		// When a request is given up, the other end may end its answer in an
		// orderly way before the connection is closed.
		return reply, transportError(ctx, endpoint.Host, apiKey, io.ErrUnexpectedEOF)
	}
	if err != nil {
		// A reply may be that long because the request was: strangers choose ids.
		return reply, &Error{
			Reason: InvalidReply, StatusCode: resp.StatusCode, DocumentOnly: len(body) > maxReplyBytes,
			Err: fmt.Errorf("%s answered %d, but %w", endpoint.Host, resp.StatusCode, err),
		}
	}
	// Of the two readings of the time at which the request was sent, the one
	// counts that leaves less of the token's life.
	sent := c.Now
	if date, ok := reply.At(); ok && date.After(sent) {
		sent = date
	}
	reply.Facts, err = ReadToken(jwt, c.Request, askedExp, sent)
	if err == nil && c.Form == DocumentedName {
		err = reply.Grant.checkFallback(c.Permissions)
	}
	if err != nil {
		e := &Error{Reason: InvalidReply, StatusCode: resp.StatusCode, DocumentOnly: true, Err: fmt.Errorf("%s answered %d, but %w", endpoint.Host, resp.StatusCode, err)}
		if _, ok := errors.AsType[*overGrantError](err); ok {
			e.Reason, e.Misconfigured = OverGranted, true
		}
		return reply, e
	}
	reply.JWT = jwt
	reply.Lifetime = Lifetime{
		Minted: reply.Sent,
		Life:   time.Unix(reply.Exp, 0).Sub(sent),
		Asked:  time.Unix(askedExp, 0).Sub(c.Now),
	}
	return reply, nil
}

func readReply(reply []byte) (jwt string, err error) {
	if len(reply) > maxReplyBytes {
		return "", fmt.Errorf("with more than %d bytes", maxReplyBytes)
	}
	// A map, since a struct would also take "JWT" for jwt.
	var members map[string]json.RawMessage
	if err := json.Unmarshal(reply, &members); err != nil {
		return "", errors.New("not with a JSON object; check that endpoint is the session endpoint of the DWS Viewer API")
	}
	if jwt = stringMember(members, "jwt"); jwt == "" {
		return "", errors.New("without a jwt; check that endpoint is the session endpoint of the DWS Viewer API")
	}
	return jwt, nil
}

// transportError is for when there is no whole answer. The error is quoted as
// text, since it may hold a piece of what was received.
func transportError(ctx context.Context, host, apiKey string, err error) *Error {
	_, dialing := errors.AsType[reverseproxy.DialError](err)
	text := Redact(err.Error(), apiKey)
	if ctx.Err() != nil || !dialing && errors.Is(err, context.DeadlineExceeded) {
		return &Error{Reason: Timeout, Err: fmt.Errorf("%s did not answer in time: %s", host, text)}
	}
	return &Error{
		Reason: Unavailable,
		Err:    fmt.Errorf("%s cannot be reached: %s", host, text),
		Unsent: dialing,
	}
}

// statusError turns an answer other than 200 and 201 into an error.
func statusError(resp *http.Response, reply []byte, apiKey string, now clock.Time) *Error {
	e := &Error{Reason: Unavailable, StatusCode: resp.StatusCode}
	retryAfter := resp.Header.Get("Retry-After")
	var hint string
	switch code := resp.StatusCode; {
	case code == http.StatusUnauthorized, code == http.StatusForbidden:
		e.Reason = KeyRefused
		e.Misconfigured = true
		hint = "; the key is refused: check api_key. An account has a Viewer key and a Processor key, both begin with pdf_live_, and only the Viewer key is accepted here"
	case code == http.StatusTooManyRequests, code == http.StatusServiceUnavailable && retryAfter != "":
		e.Reason = Throttled
		e.RetryAt = readRetryAfter(retryAfter, resp.Header.Get("Date"), now)
	case code == http.StatusNotFound:
		e.Reason = Refused
		e.Misconfigured = true
		hint = "; check endpoint: the API does not look documents up when it mints, so it is the address that is unknown"
	case code >= 300 && code < 400:
		e.Misconfigured = true
		hint = "; redirects are not followed, so that the key stays with one host: check endpoint"
	case code >= 400 && code < 500 && code != http.StatusRequestTimeout:
		e.Reason = Refused
	}
	e.Err = fmt.Errorf("%s answered %d%s%s", resp.Request.URL.Host, resp.StatusCode, quoteDetails(reply, apiKey), hint)
	return e
}

// readRetryAfter reads seconds, or a date, which is by the same clock as the
// answer's own. Zero means that there is none worth believing.
func readRetryAfter(value, answered string, now clock.Time) clock.Time {
	var wait time.Duration
	if seconds, err := strconv.ParseUint(value, 10, 64); err == nil {
		wait = time.Duration(min(seconds, math.MaxInt32)) * time.Second
	} else if date, err := http.ParseTime(value); err == nil {
		if wait = date.Sub(now.Wall()); answered != "" {
			if its, err := http.ParseTime(answered); err == nil {
				wait = date.Sub(its)
			}
		}
	}
	if wait <= 0 {
		return clock.Time{}
	}
	return now.Add(min(wait, maxRetryAfter))
}

var (
	// A token's first two parts are JSON objects, so each begins with "e" and
	// one of w to z. Host names do not look like that.
	jwtInText = regexp.MustCompile(`e[w-z][A-Za-z0-9_-]{2,}\.e[w-z][A-Za-z0-9_-]{2,}(\.[A-Za-z0-9_-]*)?`)
	keyInText = regexp.MustCompile(`pdf_[A-Za-z0-9_-]+`)
)

// quoteDetails quotes what an error answer says of itself, short and without
// anything that looks like a key or a token: some servers echo what they got.
func quoteDetails(reply []byte, apiKey string) string {
	var members map[string]json.RawMessage
	_ = json.Unmarshal(reply, &members)
	var texts []string
	for _, name := range []string{"details", "errorMessage", "detail", "error", "message", "title"} {
		if text := stringMember(members, name); text != "" {
			texts = append(texts, text)
			break // they say the same
		}
	}
	var paths []struct{ Path, Details string }
	_ = json.Unmarshal(members["failingPaths"], &paths)
	for _, p := range paths[:min(len(paths), maxFailingPaths)] {
		texts = append(texts, strings.Trim(p.Path+": "+p.Details, ": "))
	}
	if id := stringMember(members, "requestId"); id != "" {
		texts = append(texts, "requestId "+id)
	}
	var quoted strings.Builder
	for _, text := range texts {
		quoted.WriteString(" (" + Redact(text, apiKey) + ")")
	}
	return quoted.String()
}

// Redact returns s short, on one line, and without anything that looks like a
// key or a token.
func Redact(s, apiKey string) string {
	s = strings.ReplaceAll(s, apiKey, "REDACTED")
	s = jwtInText.ReplaceAllString(s, "REDACTED")
	s = keyInText.ReplaceAllString(s, "REDACTED")
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
	if len(s) > maxDetailBytes {
		s = strings.ToValidUTF8(s[:maxDetailBytes], "") + "…"
	}
	return s
}
