"""Chat templates for tests, written in the manner of well-known models.

They give the published prompt formats by the same Jinja features that the
models' own templates use: namespaces, slices, loop controls, white space
control, macros, `raise_exception`, `strftime_now`, `tojson`.
"""

from __future__ import annotations

# SmolLM2's, as its GGUF has it.
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging "
    "Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)

CHATML = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role }}
    {{- '\\n' ~ message.content ~ '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

LLAMA_2 = """\
{% if messages[0]['role'] == 'system' %}
    {% set system = '<<SYS>>\\n' + messages[0]['content'] | trim + '\\n<</SYS>>\\n\\n' %}
    {% set turns = messages[1:] %}
{% else %}
    {% set system = '' %}
    {% set turns = messages %}
{% endif %}
{% for turn in turns %}
    {% if (turn['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('roles must alternate user/assistant') }}
    {% endif %}
    {% if turn['role'] == 'user' %}
        {{- bos_token + '[INST] ' + (system if loop.first else '') + turn['content'].strip() -}}
        {{ ' [/INST]' -}}
    {% else %}
        {{- ' ' + turn['content'].strip() + ' ' + eos_token -}}
    {% endif %}
{% endfor %}
"""

LLAMA_3 = """\
{{- bos_token }}
{%- macro header(role) %}{{ '<|start_header_id|>' ~ role ~ '<|end_header_id|>\\n\\n' }}\
{% endmacro %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now('%d %b %Y') %}
    {%- endif %}
{%- endif %}
{%- set state = namespace(system='') %}
{%- for message in messages %}
    {%- if message.role != 'system' %}{% continue %}{% endif %}
    {%- set state.system = message.content | trim %}
    {%- break %}
{%- endfor %}
{{- header('system') }}
{{- 'Today Date: ' + date_string + '\\n\\n' }}
{%- if tools is not none %}
    {%- for tool in tools %}
        {{- tool | tojson(indent=4) + '\\n\\n' }}
    {%- endfor %}
{%- endif %}
{{- state.system + '<|eot_id|>' }}
{%- for message in messages %}
    {%- if message.role == 'system' %}{% continue %}{% endif %}
    {{- header(message.role) + message.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- header('assistant') }}
{%- endif %}
"""

MISTRAL = """\
{{ bos_token }}{% for message in messages %}
{% if message['role'] == 'user' %}
{{- '[INST] ' + message['content'] + '[/INST]' -}}
{% elif message['role'] == 'assistant' %}
{%- generation %}
{{- ' ' + message['content'] + eos_token -}}
{% endgeneration -%}
{% else %}
{{ raise_exception('only user and assistant roles are supported') }}
{% endif %}
{% endfor %}
"""
