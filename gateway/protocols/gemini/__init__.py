"""Google's generateContent, as the Gemini API and Vertex AI speak it (ai.google.dev/api/generate-content)."""
