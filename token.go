package viewersession

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"time"

	"github.com/viewersession/caddy-viewer-session/internal/clock"
)

const (
	// maxTokenBytes is more than any header or cookie can carry through
	// common app servers, and far more than the API's tokens have.
	maxTokenBytes = 8 << 10

	// renewalSpread is how far, as a share, the renewal point varies from one
	// token to the next, so that tokens minted together are not renewed together.
	renewalSpread = 0.1

	// renewalRetry is how long a failed renewal rests before the next request
	// for the token tries again.
	renewalRetry = time.Second

	// replacementRest is how long a key rests after a token was replaced
	// because a browser said that it was rejected.
	replacementRest = 5 * time.Second
)

// token is a minted session token with what decides on its use. But for the
// atomics it never changes.
type token struct {
	text     string // the key and the jwt, in one piece: there may be a million of them
	keyBytes uint32
	era      era           // when its minting began, as purges count time
	exp      int64         // Unix seconds, by the API's clock
	minted   clock.Time    // by this machine's clocks
	life     time.Duration // from minting; never handed out after that
	asked    time.Duration // the life that was asked for
	spread   float64       // this token's factor on the renewal point

	// renewAfter is when the next renewal may start. One request moves it
	// forward and becomes the one that renews. Like failedAt it counts
	// nanoseconds of the pool's own clock, which no step of the wall clock moves.
	renewAfter atomic.Int64

	// failedAt is when the latest attempt to replace the token failed; 0 for never.
	failedAt atomic.Int64

	// replaceAfter is when the token may be replaced because a browser says
	// that it was rejected.
	replaceAfter atomic.Int64
}

// lifetime is how long a token lives, and from when.
type lifetime struct {
	minted      clock.Time
	life, asked time.Duration
}

func newToken(key, jwt string, exp int64, l lifetime) *token {
	return &token{
		text:     key + jwt,
		keyBytes: uint32(len(key)), //nolint:gosec // request lines and headers have limits
		spread:   1 + renewalSpread*(2*rand.Float64()-1),
		exp:      exp,
		minted:   l.minted,
		life:     l.life,
		asked:    l.asked,
	}
}

// key is the whole cache key; it is compared on every look-up.
func (t *token) key() string { return t.text[:t.keyBytes] }

func (t *token) jwt() string { return t.text[t.keyBytes:] }

// freshness says what a token is good for at a moment.
type freshness uint8

const (
	expired freshness = iota // never handed out
	short                    // less than min_remaining left: only if none can be minted
	due                      // handed out, and renewed in the background
	fresh
)

// freshness counts from the minting, by the clock that says that more time has
// passed: neither one that is set back nor a suspend prolongs a token's life.
func (t *token) freshness(now clock.Time, minRemaining time.Duration) freshness {
	if t == nil {
		return expired
	}
	remaining := t.life - now.Since(t.minted)
	if remaining <= 0 {
		return expired
	}
	if t.life < t.asked {
		// The API granted less than was asked for. Scaled to the lifetime,
		// a short token does not turn every request into a mint.
		minRemaining = time.Duration(float64(minRemaining) * float64(t.life) / float64(t.asked))
	}
	switch {
	case remaining < minRemaining:
		return short
	case remaining <= time.Duration(float64(t.life+minRemaining)/2*t.spread):
		return due
	default:
		return fresh
	}
}

// claimRenewal reports whether the caller is the one to renew the token now.
func (t *token) claimRenewal(elapsed time.Duration) bool {
	after := t.renewAfter.Load()
	return int64(elapsed) >= after &&
		t.renewAfter.CompareAndSwap(after, int64(elapsed+renewalRetry))
}

// is reports whether text is this token, with its signature or without: a
// browser that names a rejected token can keep it out of access logs that way.
func (t *token) is(text string) bool {
	unsigned := t.jwt()[:strings.LastIndexByte(t.jwt(), '.')]
	return text == t.jwt() || text == unsigned
}

// tokenFacts is what a token says of itself.
type tokenFacts struct {
	payload json.RawMessage
	grant   grant

	exp    int64 // Unix seconds, bounded by the one asked for
	hasExp bool  // false: the token has none, and exp is the one asked for

	// ownOnly is set for a token that names the user or the document in another
	// case than the one asked for. It is for the ask that it was minted for,
	// and not for the store.
	ownOnly bool
}

// readToken checks what the API sent as a session token. The signature cannot
// be checked here: only the API has the key. now is by the API's clock. With an
// error it returns what is known of the token nevertheless.
func readToken(jwt string, a *ask, askedExp int64, now time.Time) (facts tokenFacts, err error) {
	if len(jwt) > maxTokenBytes {
		return facts, fmt.Errorf("the token has %d bytes, more than the %d that are accepted", len(jwt), maxTokenBytes)
	}
	parts := strings.Split(jwt, ".")
	if len(parts) != 3 {
		return facts, fmt.Errorf("the token has %d parts; a JWT has 3", len(parts))
	}
	for _, part := range parts {
		if part == "" || strings.ContainsFunc(part, notBase64URL) {
			return facts, errors.New("the token has an empty part or bytes that no JWT has")
		}
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return facts, errors.New("the token's payload is not base64url")
	}
	// A map, since a struct would also take "EXP" for exp.
	var claims map[string]json.RawMessage
	if err := json.Unmarshal(payload, &claims); err != nil || claims == nil {
		return facts, errors.New("the token's payload is not a JSON object")
	}
	facts.payload = payload
	if _, err := decodeJSON(payload); err != nil {
		return facts, errors.New("the token's payload has a member twice") // of which the API may read the other
	}
	entries, otherDocument, err := documentEntries(claims, a.documentID)
	if err != nil {
		return facts, err
	}
	otherUser, err := checkUser(claims["user_id"], a.userID)
	if err != nil {
		return facts, err
	}
	facts.ownOnly = otherDocument || otherUser
	if facts.grant, err = readGrant(append(entries, claims)); err != nil {
		return facts, err
	}
	if err := facts.readExp(claims["exp"], askedExp, now); err != nil {
		return facts, err
	}
	return facts, facts.grant.check(a.permissions)
}

func (f *tokenFacts) readExp(raw json.RawMessage, askedExp int64, now time.Time) error {
	if !stated(raw) {
		f.exp = askedExp
		return nil
	}
	var seconds float64 // RFC 7519 allows fractions
	if err := json.Unmarshal(raw, &seconds); err != nil {
		return errors.New("the token's exp is not a number")
	}
	exp := int64(math.Floor(min(seconds, float64(askedExp))))
	if exp <= now.Unix() {
		return &expiredTokenError{by: float64(now.Unix()) - seconds}
	}
	f.exp, f.hasExp = exp, true
	return nil
}

// expiredTokenError is the error for a token that has ended before it came.
type expiredTokenError struct{ by float64 }

// Error implements error.
func (e *expiredTokenError) Error() string {
	return fmt.Sprintf("the token has expired already, %.0f s ago; check this machine's clock", e.by)
}

// documentEntries returns the entries of the token's allowed_documents. A token
// that names another document than the one asked for is refused: a cache or a
// proxy between here and the API that mixes up its answers must not hand one
// user's token to another. What the token does not say is not held against it;
// what it says in a form that is not known is. The API may fold an id's case;
// otherCase reports that.
func documentEntries(claims map[string]json.RawMessage, documentID string) (entries []map[string]json.RawMessage, otherCase bool, err error) {
	var list []json.RawMessage
	if raw := claims["allowed_documents"]; stated(raw) && json.Unmarshal(raw, &list) != nil {
		return nil, false, errors.New("the token's allowed_documents is not a list")
	}
	entries = make([]map[string]json.RawMessage, len(list), len(list)+1)
	for i, raw := range list {
		if json.Unmarshal(raw, &entries[i]) != nil || entries[i] == nil {
			return nil, false, errors.New("an entry of the token's allowed_documents is not an object")
		}
	}
	for _, object := range append(entries, claims) {
		raw := object["document_id"]
		if !stated(raw) {
			continue
		}
		var id string
		if json.Unmarshal(raw, &id) != nil {
			return nil, false, errors.New("the token's document_id is not a string")
		}
		if !strings.EqualFold(id, documentID) {
			return nil, false, errors.New("the token is for another document than the one asked for")
		}
		otherCase = otherCase || id != documentID
	}
	return entries, otherCase, nil
}

// checkUser refuses a token that names another user than the one asked for.
// The API may trim a user's name and fold its case; otherCase reports the latter.
func checkUser(raw json.RawMessage, asked string) (otherCase bool, err error) {
	if !stated(raw) {
		return false, nil
	}
	var user string
	if json.Unmarshal(raw, &user) != nil {
		return false, errors.New("the token's user_id is not a string")
	}
	user, asked = strings.TrimSpace(user), strings.TrimSpace(asked)
	if !strings.EqualFold(user, asked) {
		return false, errors.New("the token is for another user than the one asked for")
	}
	return user != asked, nil
}

// stated reports whether a member of a JSON object is there, and not null.
func stated(raw json.RawMessage) bool { return len(raw) > 0 && string(raw) != "null" }

// stringMember returns a member of a JSON object if it is a string, or nothing.
func stringMember(object map[string]json.RawMessage, name string) string {
	var s string
	if json.Unmarshal(object[name], &s) != nil {
		return ""
	}
	return s
}

func notBase64URL(r rune) bool {
	return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_')
}
