package emulator

import (
	"crypto/rand"
	"encoding/json"
	"maps"
	"net/http"
)

// answer is a response that has not been written yet, so that a fault can
// still spoil it.
type answer struct {
	status int
	header http.Header
	body   []byte
}

func jsonAnswer(status int, v any) answer {
	body, err := json.Marshal(v)
	if err != nil {
		return apiError(http.StatusInternalServerError, err.Error())
	}
	return answer{status, http.Header{"Content-Type": {"application/json"}}, body}
}

// failingPath names one part of a request body that the API refuses.
type failingPath struct {
	Path    string `json:"path"`
	Details string `json:"details"`
}

// apiError is the error body that the DWS APIs share.
func apiError(status int, details string, failing ...failingPath) answer {
	return jsonAnswer(status, struct {
		Details      string        `json:"details"`
		Status       int           `json:"status"`
		RequestID    string        `json:"requestId"`
		FailingPaths []failingPath `json:"failingPaths"`
	}{details, status, rand.Text(), append([]failingPath{}, failing...)})
}

func methodNotAllowed(allow string) answer {
	a := apiError(http.StatusMethodNotAllowed, "method not allowed, use "+allow)
	a.header.Set("Allow", allow)
	return a
}

func (a answer) writeHeader(w http.ResponseWriter) {
	maps.Copy(w.Header(), a.header)
	w.WriteHeader(a.status)
}

func (a answer) write(w http.ResponseWriter) {
	a.writeHeader(w)
	w.Write(a.body)
}
