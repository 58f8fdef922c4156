package viewersession

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

	// maxDetailBytes bounds what an error quotes of the API's answer.
	maxDetailBytes = 300

	userAgent = "caddy-viewer-session"
)

// mintRequest is one request for a token.
type mintRequest struct {
	*ask
	transport http.RoundTripper
	endpoint  *url.URL
	apiKey    string
	form      bodyForm
	now       time.Time         // by the API's clock, as far as it is known; exp is counted from it
	clock     func() clock.Time // this machine's
}

// mintToken sends one POST /viewer/sessions and returns the token that came
// back, once it has been checked, and when it expires. It does not retry.
//
// The request goes through transport.RoundTrip: redirects are not followed, so
// the key reaches no host but the endpoint's.
//
// Beside a failure it returns what a token said that must not be used, but not
// the token.
func mintToken(ctx context.Context, m mintRequest) (minted mintReply, err error) {
	endpoint, apiKey := m.endpoint, m.apiKey
	askedExp := m.now.Add(m.ttl).Unix()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, endpoint.String(), bytes.NewReader(m.body(askedExp, m.form)))
	if err != nil {
		return mintReply{}, &failure{reason: reasonUnavailable, err: fmt.Errorf("building the request for %s: %w", endpoint.Host, err)}
	}
	req.Header.Set("Authorization", "Bearer "+apiKey)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", userAgent)
	propagation.TraceContext{}.Inject(ctx, propagation.HeaderCarrier(req.Header)) // of the mint's own span, if there is one

	minted.sent = m.clock()
	resp, err := m.transport.RoundTrip(req)
	minted.answered = m.clock()
	if err != nil {
		return minted, transportFailure(ctx, endpoint.Host, apiKey, err)
	}
	defer resp.Body.Close()
	minted.date, minted.status = resp.Header.Get("Date"), resp.StatusCode
	if resp.StatusCode == http.StatusSwitchingProtocols {
		// The body would be the connection, which heeds no deadline.
		return minted, statusFailure(resp, nil, apiKey, minted.answered)
	}
	reply, err := io.ReadAll(io.LimitReader(resp.Body, maxReplyBytes+1))
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusCreated {
		// Whatever could be read of an error is only quoted.
		return minted, statusFailure(resp, reply, apiKey, minted.answered)
	}
	if err != nil {
		return minted, transportFailure(ctx, endpoint.Host, apiKey, err)
	}
	jwt, err := readReply(reply)
	if err != nil {
		return minted, &failure{reason: reasonInvalidReply, answered: resp.StatusCode, err: fmt.Errorf("%s answered %d, but %w", endpoint.Host, resp.StatusCode, err)}
	}
	// Of the two readings of the time at which the request was sent, the one
	// counts that leaves less of the token's life.
	sent := m.now
	if date, ok := minted.at(); ok && date.After(sent) {
		sent = date
	}
	minted.tokenFacts, err = readToken(jwt, m.ask, askedExp, sent)
	if err == nil && m.form == documentedName {
		err = minted.grant.checkFallback(m.permissions)
	}
	if err != nil {
		f := &failure{reason: reasonInvalidReply, answered: resp.StatusCode, ofOneDocument: true, err: fmt.Errorf("%s answered %d, but %w", endpoint.Host, resp.StatusCode, err)}
		if _, ok := errors.AsType[*overGrantError](err); ok {
			f.reason, f.misconfigured = reasonOverGranted, true
		}
		return minted, f
	}
	minted.jwt = jwt
	minted.lifetime = lifetime{
		minted: minted.sent,
		life:   time.Unix(minted.exp, 0).Sub(sent),
		asked:  time.Unix(askedExp, 0).Sub(m.now),
	}
	return minted, nil
}

// mintReply is an answer, checked but for the jwt, which is only there if it may be used.
type mintReply struct {
	tokenFacts
	exchange
	lifetime
	jwt    string
	status int // 0 if there was no answer
}

// mayFallBack reports whether to ask once more with the documented name alone:
// the API has refused a request that has another one as well, and that may be
// why. With permissions that are not documented, they may be why.
func (a *ask) mayFallBack(f *failure, form bodyForm) bool {
	return form == bothNames && documented(a.permissions) &&
		(f.answered == http.StatusBadRequest || f.answered == http.StatusUnprocessableEntity)
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

// transportFailure is for when there is no whole answer. The error is quoted as
// text, since it may hold a piece of what was received.
func transportFailure(ctx context.Context, host, apiKey string, err error) *failure {
	_, dialing := errors.AsType[reverseproxy.DialError](err)
	text := cleanDetail(err.Error(), apiKey)
	if ctx.Err() != nil || !dialing && errors.Is(err, context.DeadlineExceeded) {
		return &failure{reason: reasonTimeout, err: fmt.Errorf("%s did not answer in time: %s", host, text)}
	}
	return &failure{
		reason: reasonUnavailable,
		err:    fmt.Errorf("%s cannot be reached: %s", host, text),
		unsent: dialing,
	}
}

// statusFailure turns an answer other than 200 and 201 into a failure.
func statusFailure(resp *http.Response, reply []byte, apiKey string, now clock.Time) *failure {
	f := &failure{reason: reasonUnavailable, answered: resp.StatusCode}
	retryAfter := resp.Header.Get("Retry-After")
	var hint string
	switch code := resp.StatusCode; {
	case code == http.StatusUnauthorized, code == http.StatusForbidden:
		f.reason = reasonKeyRefused
		f.misconfigured = true
		hint = "; the key is refused: check api_key. An account has a Viewer key and a Processor key, both begin with pdf_live_, and only the Viewer key is accepted here"
	case code == http.StatusTooManyRequests, code == http.StatusServiceUnavailable && retryAfter != "":
		f.reason = reasonThrottled
		f.retryAt = readRetryAfter(retryAfter, resp.Header.Get("Date"), now)
	case code == http.StatusNotFound:
		f.reason = reasonRejected
		f.misconfigured = true
		hint = "; check endpoint: the API does not look documents up when it mints, so it is the address that is unknown"
	case code >= 300 && code < 400:
		f.misconfigured = true
		hint = "; redirects are not followed, so that the key stays with one host: check endpoint"
	case code >= 400 && code < 500 && code != http.StatusRequestTimeout:
		f.reason = reasonRejected
	}
	f.err = fmt.Errorf("%s answered %d%s%s", resp.Request.URL.Host, resp.StatusCode, quoteDetails(reply, apiKey), hint)
	return f
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
	details := stringMember(members, "details")
	if details == "" {
		details = stringMember(members, "errorMessage")
	}
	var quoted string
	if details != "" {
		quoted += " (" + cleanDetail(details, apiKey) + ")"
	}
	if id := stringMember(members, "requestId"); id != "" {
		quoted += " (requestId " + cleanDetail(id, apiKey) + ")"
	}
	return quoted
}

func cleanDetail(s, apiKey string) string {
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
