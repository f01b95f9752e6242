# ruff: noqa: E501 -- lines are as long as those of exports
"""Exports as providers write them, with invented figures."""

from __future__ import annotations

import json

OPENAI_USAGE_JSON = json.dumps(
    {
        "object": "page",
        "data": [
            {
                "object": "bucket",
                "start_time": 1772323200,  # 2026-03-01
                "end_time": 1772409600,
                "results": [
                    {
                        "object": "organization.usage.completions.result",
                        "input_tokens": 1000,
                        "output_tokens": 500,
                        "input_cached_tokens": 800,
                        "input_audio_tokens": 0,
                        "output_audio_tokens": 0,
                        "num_model_requests": 5,
                        "project_id": "proj_a",
                        "user_id": None,
                        "api_key_id": None,
                        "model": "gpt-4o-mini-2024-07-18",
                        "batch": False,
                        "service_tier": "default",
                    },
                    {
                        "object": "organization.usage.embeddings.result",
                        "input_tokens": 70,
                        "num_model_requests": 1,
                        "project_id": "proj_a",
                        "model": "text-embedding-3-small",
                    },
                    {"object": "organization.usage.images.result", "images": 2, "num_model_requests": 1},
                ],
            },
            {"object": "bucket", "start_time": 1772409600, "end_time": 1772496000, "results": []},
        ],
        "has_more": False,
        "next_page": None,
    }
)

OPENAI_USAGE_CSV = """\
start_time,end_time,start_time_iso,end_time_iso,project_id,num_model_requests,user_id,api_key_id,model,batch,service_tier,input_tokens,output_tokens,input_cached_tokens,input_uncached_tokens,input_text_tokens,output_text_tokens,input_cached_text_tokens,input_audio_tokens,input_cached_audio_tokens,output_audio_tokens,input_image_tokens,input_cached_image_tokens,output_image_tokens
1772323200,1772409600,2026-03-01T00:00:00+00:00,2026-03-02T00:00:00+00:00,proj_a,10.0,user-a,key_a,gpt-4o-2024-08-06,FALSE,default,59200.0,10646.0,5760.0,53440.0,53440.0,10646.0,5760.0,0.0,0.0,0.0,0.0,0.0,0.0
1772409600,1772496000,2026-03-02T00:00:00+00:00,2026-03-03T00:00:00+00:00,,,,,,,,,,,,,,,,,,,,
"""

OPENAI_COSTS_JSON = """{"object": "page", "has_more": false, "next_page": null, "data": [
 {"object": "bucket", "start_time": 1772323200, "end_time": 1772409600,
  "start_time_iso": "2026-03-01T00:00:00", "end_time_iso": "2026-03-02T00:00:00", "results": [
   {"object": "organization.costs.result", "amount": {"value": "0E-6176", "currency": "usd"}, "quantity": 0.0,
    "line_item": "gpt-4o-mini-2024-07-18, cached input", "project_id": "proj_a", "organization_id": "org-a",
    "project_name": "Default project", "organization_name": "Org", "user_id": null, "api_key_id": null, "user_email": null},
   {"object": "organization.costs.result", "amount": {"value": "0.000004500000000000000000000", "currency": "usd"},
    "quantity": 30.0, "line_item": "gpt-4o-mini-2024-07-18, input", "project_id": "proj_a"},
   {"object": "organization.costs.result", "amount": {"value": 0.02, "currency": "usd"},
    "line_item": "web search tool calls", "project_id": "proj_a"},
   {"object": "organization.costs.result", "amount": {"value": "0.5", "currency": "usd"}, "quantity": 1000,
    "line_item": "priority | gpt-5.2, output, long context", "project_id": "proj_a"}
  ]}]}"""

OPENAI_COSTS_CSV = """\
start_time,end_time,start_time_iso,end_time_iso,amount_value,amount_currency,line_item,project_id,organization_id,organization_name
1772323200,1772409600,2026-03-01T00:00:00+00:00,2026-03-02T00:00:00+00:00,0.8958740000000000,usd,,,org-a,Personal
1772409600,1772496000,2026-03-02T00:00:00+00:00,2026-03-03T00:00:00+00:00,,,,,,
"""

ANTHROPIC_USAGE_JSON = json.dumps(
    {
        "data": [
            {
                "starting_at": "2026-03-01T00:00:00Z",
                "ending_at": "2026-03-02T00:00:00Z",
                "results": [
                    {
                        "uncached_input_tokens": 1500,
                        "cache_creation": {"ephemeral_1h_input_tokens": 1000, "ephemeral_5m_input_tokens": 500},
                        "cache_read_input_tokens": 200,
                        "output_tokens": 300,
                        "server_tool_use": {"web_search_requests": 10},
                        "api_key_id": "apikey_a",
                        "workspace_id": "wrkspc_a",
                        "model": "claude-haiku-4-5-20251001",
                        "service_tier": "standard",
                        "context_window": "0-200k",
                    }
                ],
            }
        ],
        "has_more": False,
        "next_page": None,
    }
)

ANTHROPIC_COST_JSON = json.dumps(
    {
        "data": [
            {
                "starting_at": "2026-03-01T00:00:00Z",
                "ending_at": "2026-03-02T00:00:00Z",
                "results": [
                    {
                        "amount": "123.78912",
                        "context_window": "0-200k",
                        "cost_type": "tokens",
                        "currency": "USD",
                        "description": "Claude Haiku 4.5 Usage - Input Tokens",
                        "model": "claude-haiku-4-5-20251001",
                        "service_tier": "standard",
                        "token_type": "uncached_input_tokens",
                        "workspace_id": None,
                    },
                    {
                        "amount": "10",
                        "cost_type": "web_search",
                        "currency": "USD",
                        "description": "Web Search Usage",
                        "model": None,
                        "token_type": None,
                        "workspace_id": None,
                    },
                ],
            }
        ],
        "has_more": False,
        "next_page": None,
    }
)

ANTHROPIC_USAGE_CSV = """\
usage_date_utc,model_version,api_key,workspace,usage_type,context_window,usage_input_tokens_no_cache,usage_input_tokens_cache_write_5m,usage_input_tokens_cache_write_1h,usage_input_tokens_cache_read,usage_output_tokens,web_search_count,inference_geo,speed
2026-03-01,claude-sonnet-4-20250514,key-a,Default,standard,≤ 200k,100000,10,20,30,5000,10,not_available,
"""

ANTHROPIC_COST_CSV = """\
usage_date_utc,model,workspace,api_key,usage_type,context_window,token_type,cost_usd,list_price_usd,cost_type,inference_geo,speed
2026-03-01,Claude Haiku 4.5,Default,key-a,message,≤ 200k,input_no_cache,1.50,1.50,token,global,
2026-03-01,Claude Haiku 4.5,Default,key-a,message,≤ 200k,input_cache_write_1h,0.25,0.25,token,global,
"""

OPENROUTER_GENERATION = json.dumps(
    {
        "data": {
            "id": "gen-1",
            "created_at": "2026-03-01T21:19:33.705Z",
            "model": "meta-llama/llama-4-scout",
            "total_cost": 0.00015,
            "tokens_prompt": 65,
            "tokens_completion": 116,
            "native_tokens_prompt": 64,
            "native_tokens_completion": 98,
            "native_tokens_reasoning": 10,
            "native_tokens_cached": 14,
            "streamed": True,
            "cancelled": False,
            "provider_name": "Groq",
        }
    }
)

OPENROUTER_ACTIVITY = json.dumps(
    {
        "data": [
            {
                "date": "2026-03-01 00:00:00",
                "model": "openai/gpt-4.1",
                "model_permaslug": "openai/gpt-4.1-2025-04-14",
                "endpoint_id": "ep1",
                "provider_name": "OpenAI",
                "usage": 0.015,
                "byok_usage_inference": 0.012,
                "requests": 5,
                "prompt_tokens": 50,
                "completion_tokens": 125,
                "reasoning_tokens": 25,
            }
        ]
    }
)

OPENROUTER_CSV = """\
generation_id,created_at,cost_total,cost_web_search,cost_cache,cost_file_processing,byok_usage_inference,tokens_prompt,tokens_completion,tokens_reasoning,tokens_cached,model_permaslug,provider_name,variant,cancelled,streamed,user,finish_reason_raw,finish_reason_normalized,generation_time_ms,time_to_first_token_ms,api_key_disabled,api_key_name,app_name
gen-1,2026-03-01 03:46:57.713,0.0123,0,0,0,0,10389,137,0,389,openai/gpt-oss-120b,Groq,standard,false,true,,stop,stop,100,10,false,prod,app
"""

CUR_LEGACY = """\
identity/LineItemId,bill/BillingEntity,lineItem/UsageAccountId,lineItem/LineItemType,lineItem/UsageStartDate,lineItem/UsageEndDate,lineItem/ProductCode,lineItem/UsageType,lineItem/UsageAmount,lineItem/CurrencyCode,lineItem/UnblendedCost,product/ProductName,pricing/unit
a1,AWS,111122223333,Usage,2026-03-01T00:00:00Z,2026-03-01T01:00:00Z,AmazonBedrock,USE1-Claude4.6Opus-input-tokens-cross-region-global,12.5000000000,USD,0.0625000000,Amazon Bedrock,1K tokens
a2,AWS,111122223333,Usage,2026-03-01T00:00:00Z,2026-03-01T01:00:00Z,AmazonBedrock,USE1-Claude4.6Opus-cache-read-input-token-count-cross-region-global,2.0000000000,USD,0.0010000000,Amazon Bedrock,1K tokens
a3,AWS,111122223333,Usage,2026-03-01T00:00:00Z,2026-03-01T01:00:00Z,AmazonEC2,USE1-BoxUsage:t3.micro,1,USD,0.01,Amazon EC2,Hrs
a4,AWS,111122223333,Tax,2026-03-01T00:00:00Z,2026-03-01T01:00:00Z,AmazonBedrock,,1,USD,0.02,Amazon Bedrock,
a5,AWS,111122223333,Credit,2026-03-01T00:00:00Z,2026-03-01T01:00:00Z,AmazonBedrock,,1,USD,-0.50,Amazon Bedrock,
a6,AWS Marketplace,111122223333,Usage,2026-03-01T00:00:00Z,2026-03-01T01:00:00Z,4ubbd1,USW2-MP:USW2_OutputTokenCount_Global-Units,0.2500000000,USD,6.25,Claude Opus 4.6 (Amazon Bedrock Edition),Units
"""

CUR_2 = """\
identity_line_item_id,line_item_usage_account_id,line_item_line_item_type,line_item_usage_start_date,line_item_usage_end_date,line_item_product_code,line_item_usage_type,line_item_usage_amount,line_item_currency_code,line_item_unblended_cost,pricing_unit,product
a1,111122223333,Usage,2026-03-01 05:00:00.000,2026-03-01 06:00:00.000,AmazonBedrock,EU-Nova2.0Lite-output-tokens,3,USD,0.0075,1K tokens,"{""product_name"": ""Amazon Bedrock""}"
"""

FOCUS_CSV = """\
BilledCost,BillingAccountId,BillingCurrency,BillingPeriodEnd,BillingPeriodStart,ChargeCategory,ChargeClass,ChargeDescription,ChargePeriodEnd,ChargePeriodStart,ConsumedQuantity,ConsumedUnit,EffectiveCost,ListCost,ServiceCategory,ServiceName,SkuId,SkuMeter,SkuPriceDetails,Colour
1.25,acct,USD,2026-04-01T00:00:00Z,2026-03-01T00:00:00Z,Usage,,input,2026-03-02T00:00:00Z,2026-03-01T00:00:00Z,500000,Tokens,1.25,1.25,AI and Machine Learning,Models,anthropic/claude-opus-4-6/input,Input Tokens,,red
0.10,acct,USD,2026-04-01T00:00:00Z,2026-03-01T00:00:00Z,Usage,,cached,2026-03-02T00:00:00Z,2026-03-01T00:00:00Z,20,1000 Tokens,0.10,0.10,AI and Machine Learning,Models,anthropic/claude-opus-4-6/cache_read,Cached Input Tokens,"{""x_TokenType"": ""cache read""}",red
3,acct,USD,2026-04-01T00:00:00Z,2026-03-01T00:00:00Z,Usage,,disk,2026-03-02T00:00:00Z,2026-03-01T00:00:00Z,1,GB,3,3,Storage,Disks,disk,Disk,,red
-2,acct,USD,2026-04-01T00:00:00Z,2026-03-01T00:00:00Z,Credit,,credit,2026-03-02T00:00:00Z,2026-03-01T00:00:00Z,,,-2,-2,AI and Machine Learning,Models,,,,red
"""
