package emulator

import (
	"bytes"
	"crypto/rand"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

const (
	keyPrefix          = "pdf_live_"
	processorKeyPrefix = keyPrefix + "processor"

	maxBody         = 64 << 10
	defaultLifetime = time.Hour
	// A minute more than 30 days, for the clocks of those who ask for exactly that.
	maxLifetime = 30*24*time.Hour + time.Minute
)

func (e *Emulator) serveSessions(w http.ResponseWriter, r *http.Request) {
	e.update(func(s *Stats) {
		s.Requests++
		s.InFlight++
		s.MaxInFlight = max(s.MaxInFlight, s.InFlight)
	})
	defer e.update(func(s *Stats) { s.InFlight-- })

	body, readErr := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if e.opts.OnMint != nil {
		e.opts.OnMint(r, body)
	}
	documents := requestedDocuments(body)
	fault := e.takeFault(documents)
	if !e.holdUp(r.Context(), fault) {
		return
	}
	a, ok := fault.answer()
	if !ok {
		a = e.mint(r, body, readErr, fault)
	}
	// Before the answer is written: who has read it finds it counted.
	e.update(func(s *Stats) { s.countAnswer(a.status, documents) })
	e.spoil(w, r, fault, a)
}

// requestedDocuments is lenient, because it also runs for requests that will
// be refused: a fault may be meant for one document, whatever the request.
func requestedDocuments(body []byte) []string {
	var asked struct {
		AllowedDocuments []struct {
			DocumentID string `json:"document_id"`
		} `json:"allowed_documents"`
	}
	if json.Unmarshal(body, &asked) != nil {
		return nil
	}
	ids := make([]string, 0, len(asked.AllowedDocuments))
	for _, document := range asked.AllowedDocuments {
		ids = append(ids, document.DocumentID)
	}
	return ids
}

// mint judges one request to /viewer/sessions.
func (e *Emulator) mint(r *http.Request, body []byte, readErr error, f Fault) answer {
	if r.Method != http.MethodPost {
		return methodNotAllowed(http.MethodPost)
	}
	scheme, key, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	switch {
	case !strings.EqualFold(scheme, "Bearer"):
		return apiError(http.StatusUnauthorized, "no API key: send Authorization: Bearer <key>")
	case strings.HasPrefix(key, processorKeyPrefix):
		return apiError(http.StatusForbidden, "this is a Processor key, the Viewer API takes the Viewer key only")
	case !e.accepts(key):
		return apiError(http.StatusUnauthorized, "unknown API key")
	}
	if mediaType, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || mediaType != "application/json" {
		return apiError(http.StatusUnsupportedMediaType, "the body has to be application/json")
	}
	if readErr != nil {
		return apiError(http.StatusBadRequest, "reading the body: "+readErr.Error())
	}
	claims, err := decodeObject(body)
	if err != nil {
		return apiError(http.StatusBadRequest, "the body has to be one JSON object: "+err.Error())
	}

	now := time.Now()
	exp, status, failing := e.judge(claims, now)
	if len(failing) > 0 {
		return apiError(status, "the request is not valid", failing...)
	}
	e.grant(claims, f)
	if limit := now.Add(e.opts.MaxTTL).Unix(); e.opts.MaxTTL > 0 && exp > limit {
		exp = limit
	}
	claims["exp"] = exp
	claims["iat"] = now.Unix()
	claims["jti"] = rand.Text()
	claims["server_url"] = e.serverURL(r)
	token, err := e.sign(claims)
	if err != nil {
		return apiError(http.StatusInternalServerError, err.Error())
	}
	return jsonAnswer(http.StatusCreated, map[string]string{"jwt": token})
}

func (e *Emulator) accepts(key string) bool {
	if e.opts.APIKey == "" {
		return strings.HasPrefix(key, keyPrefix)
	}
	return subtle.ConstantTimeCompare([]byte(key), []byte(e.opts.APIKey)) == 1
}

func (e *Emulator) serverURL(r *http.Request) string {
	if e.opts.ServerURL != "" {
		return e.opts.ServerURL
	}
	if r.TLS != nil {
		return "https://" + r.Host + "/"
	}
	return "http://" + r.Host + "/"
}

// decodeObject keeps numbers as text, so that claims come back as they were sent.
func decodeObject(body []byte) (map[string]any, error) {
	if !utf8.Valid(body) {
		return nil, errors.New("it is not valid UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	var object map[string]any
	err := decodeOne(dec, &object)
	if err == nil && object == nil {
		err = errors.New("it is null")
	}
	return object, err
}

func decodeOne(dec *json.Decoder, v any) error {
	if err := dec.Decode(v); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows it")
	}
	return nil
}

func nonEmptyString(v any) bool {
	s, ok := v.(string)
	return ok && s != ""
}

// everything is what a request without permissions grants, and what the live
// API knows.
var everything = []string{"read", "write", "download"}

// grant has each document's entry state what it permits, in the one member that
// is read, in place of what was asked for.
func (e *Emulator) grant(claims map[string]any, f Fault) {
	documents, _ := claims["allowed_documents"].([]any) // which have been judged
	for _, v := range documents {
		document := v.(map[string]any)
		granted, ok := document[e.opts.PermissionsMember]
		if !ok || f.Mode == "grant_all" {
			granted = everything
		}
		delete(document, livePermissions)
		delete(document, documentedPermissions)
		if f.Mode != "unstated" {
			document[e.opts.PermissionsMember] = granted
		}
	}
}

// guideMembers are the members that the guides name, of a request and of a
// document's entry.
var guideMembers = map[string][]string{
	"$":                   {"allowed_documents", "exp", "user_id"},
	"$.allowed_documents": {"document_id", documentedPermissions, "collaboration_permissions"},
}

// judge checks the claims that have a meaning here and returns the expiry asked
// for, or what is wrong. Every other claim is the caller's business, unless the
// emulator is strict.
func (e *Emulator) judge(claims map[string]any, now time.Time) (exp int64, status int, failing []failingPath) {
	status = http.StatusBadRequest
	refuse := func(path, details string) {
		failing = append(failing, failingPath{"$." + path, details})
	}

	refuseUnknown := func(object map[string]any, path, of string) {
		for _, name := range slices.Sorted(maps.Keys(object)) {
			if e.opts.Strict && !slices.Contains(guideMembers[of], name) {
				refuse(path+name, "is not known")
			}
		}
	}

	refuseUnknown(claims, "", "$")
	documents, _ := claims["allowed_documents"].([]any)
	// Without the member the session is for documents that the page brings.
	if _, ok := claims["allowed_documents"]; ok && len(documents) == 0 {
		refuse("allowed_documents", "has to be a non-empty array of objects")
	}
	for i, v := range documents {
		path := fmt.Sprintf("allowed_documents[%d]", i)
		document, ok := v.(map[string]any)
		if !ok {
			refuse(path, "has to be an object")
			continue
		}
		if !nonEmptyString(document["document_id"]) {
			refuse(path+".document_id", "has to be a non-empty string")
		}
		refuseUnknown(document, path+".", "$.allowed_documents")
		v, ok := document[e.opts.PermissionsMember]
		if !ok {
			continue
		}
		path += "." + e.opts.PermissionsMember
		permissions, ok := v.([]any)
		if !ok {
			refuse(path, "has to be an array of strings")
		} else if len(permissions) == 0 {
			status = http.StatusUnprocessableEntity
			refuse(path, "is empty; leave it out to allow everything")
		}
		for j, v := range permissions {
			name, _ := v.(string)
			if name == "" {
				refuse(fmt.Sprintf("%s[%d]", path, j), "has to be a non-empty string")
			} else if e.opts.PermissionsMember == livePermissions && !slices.Contains(everything, name) {
				status = http.StatusUnprocessableEntity
				refuse(fmt.Sprintf("%s[%d]", path, j), "is not known: use read, write or download")
			}
		}
	}

	if v, ok := claims["user_id"]; ok && !nonEmptyString(v) {
		refuse("user_id", "has to be a non-empty string")
	}

	exp = now.Add(defaultLifetime).Unix()
	if v, ok := claims["exp"]; ok {
		number, _ := v.(json.Number)
		var err error
		exp, err = strconv.ParseInt(number.String(), 10, 64)
		switch {
		case err != nil:
			refuse("exp", "has to be an integer, Unix seconds")
		case exp <= now.Unix():
			refuse("exp", "is not in the future")
		case exp > now.Add(maxLifetime).Unix():
			refuse("exp", "is more than 30 days ahead")
		}
	}
	return exp, status, failing
}
