package dws

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"
)

// MaxTokenBytes is more than any header or cookie can carry through common app
// servers, and far more than the API's tokens have.
const MaxTokenBytes = 8 << 10

// Facts is what a token says of itself.
type Facts struct {
	Payload json.RawMessage
	Grant   Grant

	Exp    int64 // Unix seconds, at most the one asked for
	HasExp bool  // false: the token states none, and Exp is the one asked for

	// OtherCase is set if the token names the user or the document in another
	// case than the request. Such a token is for nobody but who asked for it.
	OtherCase bool
}

// ReadToken checks what the API sent as a session token. The signature cannot
// be checked here: only the API has the key. now is by the API's clock. With an
// error it returns what is known of the token nevertheless.
func ReadToken(jwt string, r *Request, askedExp int64, now time.Time) (facts Facts, err error) {
	if len(jwt) > MaxTokenBytes {
		return facts, fmt.Errorf("the token has %d bytes, more than the %d that are accepted", len(jwt), MaxTokenBytes)
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
	facts.Payload = payload
	if _, err := DecodeJSON(payload); err != nil {
		return facts, errors.New("the token's payload has a member twice") // of which the API may read the other
	}
	entries, otherDocument, err := documentEntries(claims, r)
	if err != nil {
		return facts, err
	}
	otherUser, err := checkUser(claims["user_id"], r.UserID)
	if err != nil {
		return facts, err
	}
	facts.OtherCase = otherDocument || otherUser
	if facts.Grant, err = readGrant(append(entries, claims)); err != nil && !r.AppProvided {
		return facts, err
	}
	if err := facts.readExp(claims["exp"], askedExp, now); err != nil {
		return facts, err
	}
	if r.AppProvided {
		return facts, nil // no permissions have been asked for
	}
	return facts, facts.Grant.check(r.Permissions)
}

func (f *Facts) readExp(raw json.RawMessage, askedExp int64, now time.Time) error {
	if !stated(raw) {
		f.Exp = askedExp
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
	f.Exp, f.HasExp = exp, true
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
// otherCase reports that. A token that was asked for without a document must not
// have one.
func documentEntries(claims map[string]json.RawMessage, r *Request) (entries []map[string]json.RawMessage, otherCase bool, err error) {
	var list []json.RawMessage
	if raw := claims["allowed_documents"]; stated(raw) && json.Unmarshal(raw, &list) != nil {
		return nil, false, errors.New("the token's allowed_documents is not a list")
	}
	if r.AppProvided && (len(list) > 0 || stated(claims["document_id"])) {
		return nil, false, errors.New("the token names a document, although none was asked for")
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
		if !strings.EqualFold(id, r.DocumentID) {
			return nil, false, errors.New("the token is for another document than the one asked for")
		}
		otherCase = otherCase || id != r.DocumentID
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

func notBase64URL(r rune) bool {
	switch {
	case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '_':
		return false
	default:
		return true
	}
}
